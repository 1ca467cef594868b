"""Neuron resampling, step by step ('Towards Monosemanticity', appendix)."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sae_tools.dictionaries import Dictionary, ReLUDictionary
from sae_tools.seeds import generator
from sae_tools.training.resample import draw_rows, restart_features_, selection_probabilities


def trained(seed: int = 0, d: int = 8, d_sae: int = 30) -> tuple[Dictionary, torch.optim.Adam, Tensor]:
    """A dictionary after some steps, so that Adam's moments are there, its optimiser, and rows."""
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*shape, generator=g) for shape in ((d_sae, d), (d_sae,), (d_sae, d), (d,))]
    dictionary = ReLUDictionary(*tensors)
    optimiser = torch.optim.Adam(dictionary.parameters(), lr=1e-3, fused=True)
    x = torch.randn(400, d, generator=g)
    for _ in range(3):
        optimiser.zero_grad()
        dictionary.losses(x, l1=0.1).loss.backward()
        optimiser.step()
    return dictionary, optimiser, x


class Resampled(NamedTuple):
    features: Tensor
    rows: Tensor
    encoder_norm: float


def resample_(
    dictionary: Dictionary,
    optimiser: torch.optim.Optimizer | None,
    dead: Tensor,
    inputs: Tensor,
    losses: Tensor,
    g: torch.Generator,
    *,
    subtract_b_dec: bool = False,
    replacement: bool = True,
) -> Resampled:
    """Both halves on inputs in memory, as a job does them on two passes over a stream."""
    directions = (inputs - dictionary.b_dec if subtract_b_dec else inputs).detach()
    rows = torch.empty(0, dtype=torch.int64)
    if bool(dead.any()):
        rows = draw_rows(losses, directions.norm(dim=-1), int(dead.sum()), g, replacement=replacement)
    norm = restart_features_(dictionary, optimiser, dead, directions[rows])
    return Resampled(dead.nonzero().squeeze(1), rows, norm)


def test_probability_is_the_squared_loss() -> None:
    losses = torch.tensor([0.0, 1, 2, 3])
    assert torch.allclose(selection_probabilities(losses), torch.tensor([0, 1, 4, 9]).double() / 14)
    assert torch.allclose(selection_probabilities(losses * 1e30), torch.tensor([0, 1, 4, 9]).double() / 14)


def test_frequencies_follow_the_squared_loss() -> None:
    dictionary, _, x = trained(d_sae=4000)
    losses = torch.linspace(0, 2, 20)
    dead = torch.ones(4000, dtype=torch.bool)
    drawn = resample_(dictionary, None, dead, x[:20], losses, generator(0, "test")).rows
    expected = 4000 * losses.square() / losses.square().sum()
    counts = torch.bincount(drawn, minlength=20)
    assert counts[0] == 0
    tested = expected > 5
    chi2 = ((counts - expected)[tested].square() / expected[tested]).sum().item()
    assert chi2 < 40.8  # p = 0.001 with 18 degrees of freedom (fewer are left)
    linear = 4000 * losses / losses.sum()
    assert ((counts - linear)[tested].square() / linear[tested]).sum() > 100  # a loss not squared would be noticed


@pytest.mark.parametrize("subtract", [False, True])
def test_dead_features_start_again_and_others_stay(subtract: bool) -> None:
    dictionary, optimiser, x = trained()
    before = {name: p.detach().clone() for name, p in dictionary.named_parameters()}
    moments = {p: {k: v.clone() for k, v in optimiser.state[p].items()} for p in dictionary.parameters()}
    dead = torch.arange(30) % 4 == 1
    losses = dictionary.row_losses(x, l1=0.1)
    result = resample_(dictionary, optimiser, dead, x, losses, generator(0, "test"), subtract_b_dec=subtract)
    assert torch.equal(result.features, dead.nonzero().squeeze(1))

    start = x[result.rows] - (before["b_dec"] if subtract else 0)
    unit = start / start.norm(dim=-1, keepdim=True)
    assert (dictionary.W_dec[dead] - unit).abs().max() < 1e-6
    target = 0.2 * before["encoder"][~dead].norm(dim=-1).mean()
    assert result.encoder_norm == pytest.approx(target.item(), rel=1e-6)
    assert (dictionary.encoder[dead].norm(dim=-1) - target).abs().max() < 1e-6
    assert (dictionary.encoder[dead] - target * unit).abs().max() < 1e-6
    assert (dictionary.b_enc[dead] == 0).all()

    for name, parameter in dictionary.named_parameters():
        state = optimiser.state[parameter]
        untouched = slice(None) if name == "b_dec" else ~dead
        assert torch.equal(parameter[untouched], before[name][untouched])
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key][untouched], moments[parameter][key][untouched])
            assert moments[parameter][key][untouched].abs().max() > 0
            if name != "b_dec":
                assert (state[key][dead] == 0).all()
        assert torch.equal(state["step"], moments[parameter]["step"])


def test_a_resampled_feature_is_as_if_adam_had_never_seen_it() -> None:
    """One more step: resampled rows move as those of a fresh optimiser would, up to its bias correction."""
    dictionary, optimiser, x = trained()
    dead = torch.arange(30) < 5
    resample_(dictionary, optimiser, dead, x, dictionary.row_losses(x), generator(0, "test"))
    optimiser.zero_grad()
    dictionary.losses(x).loss.backward()
    gradient, before = dictionary.encoder.grad, dictionary.encoder.detach().clone()
    assert gradient is not None
    optimiser.step()
    beta1, beta2 = 0.9, 0.999
    m = (1 - beta1) * gradient / (1 - beta1**4)
    v = (1 - beta2) * gradient.square() / (1 - beta2**4)
    expected = before - 1e-3 * m / (v.sqrt() + 1e-8)
    assert torch.allclose(dictionary.encoder[dead], expected[dead], atol=1e-7)


def test_edges() -> None:
    dictionary, optimiser, x = trained()
    before = [p.detach().clone() for p in dictionary.parameters()]
    none = resample_(dictionary, optimiser, torch.zeros(30, dtype=torch.bool), x, torch.ones(400), generator(0, "t"))
    assert none.features.numel() == none.rows.numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(before, dictionary.parameters(), strict=True))
    everything = torch.ones(30, dtype=torch.bool)
    norm = 0.2 * dictionary.encoder.norm(dim=-1).mean().item()
    assert resample_(dictionary, None, everything, x, torch.ones(400), generator(0, "t")).encoder_norm == pytest.approx(
        norm
    )

    # Rows without a direction or with a loss that is no number are never drawn.
    x[:398] = 0
    losses = torch.full((400,), 1.0)
    losses[398] = torch.nan
    drawn = resample_(dictionary, None, everything, x, losses, generator(0, "t"))
    assert (drawn.rows == 399).all() and torch.isfinite(dictionary.W_dec).all()
    with pytest.raises(ValueError, match="too few rows"):
        resample_(dictionary, None, everything, torch.zeros(400, 8), losses, generator(0, "t"))


def test_without_replacement_no_row_is_drawn_twice() -> None:
    dictionary, _, x = trained()
    everything = torch.ones(30, dtype=torch.bool)
    losses = torch.zeros(400)
    losses[:10] = 5.0
    drawn = resample_(dictionary, None, everything, x, losses, generator(0, "t"), replacement=False).rows
    assert drawn.unique().numel() == 30 and set(range(10)) <= set(drawn.tolist())
    with pytest.raises(ValueError, match="too few rows"):
        resample_(dictionary, None, everything, x[:20], losses[:20], generator(0, "t"), replacement=False)


def test_same_generator_same_choice() -> None:
    choices = []
    for name in ("a", "a", "b"):
        dictionary, _, x = trained()
        dead = torch.arange(30) < 15
        choices.append(resample_(dictionary, None, dead, x, torch.ones(400), generator(0, name)).rows)
    assert torch.equal(choices[0], choices[1]) and not torch.equal(choices[0], choices[2])


def test_two_sites_restart_from_what_is_read_and_what_is_written() -> None:
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(6, 5, generator=g), torch.ones(6), torch.randn(6, 3, generator=g), torch.zeros(3)
    dictionary = ReLUDictionary(*weights, subtract_b_dec=False)
    before = dictionary.W_dec.detach().clone()
    dead = torch.tensor([False, True, False, False, True, False])
    x, y = torch.randn(2, 5, generator=g), torch.randn(2, 3, generator=g)
    norm = restart_features_(dictionary, None, dead, x, y)
    assert torch.allclose(dictionary.W_dec[dead], y / y.norm(dim=1, keepdim=True))
    assert torch.allclose(dictionary.encoder[dead], norm * x / x.norm(dim=1, keepdim=True))
    assert torch.equal(dictionary.W_dec[~dead], before[~dead]) and (dictionary.b_enc[dead] == 0).all()
