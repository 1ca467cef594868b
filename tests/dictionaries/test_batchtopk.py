"""BatchTopK: what a batch shares, and the threshold that inference goes by (its gradients: test_battery.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_tools.dictionaries import BatchTopKDictionary
from sae_tools.dictionaries.batchtopk import smallest_positive
from sae_tools.errors import UserError
from tests.dictionaries.reference import check_step, parameters_of, reference_activations, rows
from tests.dictionaries.reference import make as make_any

GO, FROZEN = torch.zeros(()), torch.ones(())


def make(d: int, d_sae: int, k: int) -> BatchTopKDictionary:
    dictionary = make_any("batchtopk", d=d, d_sae=d_sae, k=k)
    assert isinstance(dictionary, BatchTopKDictionary)
    return dictionary


def activations(dictionary: BatchTopKDictionary, x: Tensor) -> Tensor:
    """In training."""
    P = {name: p.detach() for name, p in parameters_of(dictionary).items()}
    return reference_activations(dictionary, x, P, P)


def test_rows_share_what_the_batch_may_use() -> None:
    dictionary, x = make(8, 40, 4), rows(30, 8)
    x[:3] *= 20
    f = activations(dictionary, x)
    counts = (f > 0).sum(-1)
    assert counts.sum() == 4 * 30 and counts[:3].min() > 10 and counts.min() < 4
    out = check_step(dictionary, x, 1e-9)
    assert out.terms["smallest_active"].item() == pytest.approx(f[f > 0].min().item())


def test_ties_are_cut_at_k_per_row() -> None:
    dictionary = make(8, 30, 4)
    with torch.no_grad():
        for tensor in (dictionary.encoder, dictionary.b_enc, dictionary.W_dec):
            tensor[10:20] = tensor[0:10]  # equal pre-activations, and equal decoder rows: it does not matter which
    x = rows(1, 8).expand(40, 8)
    out = dictionary.losses(x)
    f = activations(dictionary, x)
    assert out.fired.sum() == (f > 0).sum() == 160
    assert (dictionary.losses(x).loss - out.loss).abs() == 0  # the same ones every time
    pre = dictionary.pre_activations(x[:1])[0]
    assert out.terms["smallest_active"].item() == pytest.approx(pre.topk(4).values[-1].item())


def test_a_batch_on_which_nothing_is_positive() -> None:
    dictionary = make(8, 30, 4)
    with torch.no_grad():
        dictionary.b_enc.sub_(100)
    x = rows(20, 8)
    out = check_step(dictionary, x, 1e-9)
    assert out.fired.sum() == 0 and out.terms["smallest_active"] == 0
    check_step(dictionary, x, 1e-9, dead=torch.ones(30, dtype=torch.bool))
    dictionary.after_step_(out.terms, GO)
    assert dictionary.threshold == 0


@pytest.mark.parametrize(
    ("f", "smallest"), [([0.5, 0.0, 0.25, 3.0], 0.25), ([0.0, -1.0], 0.0), ([], 0.0), ([torch.nan], 0.0)], ids=str
)
def test_smallest_positive(f: list[float], smallest: float) -> None:
    assert smallest_positive(torch.tensor(f)) == smallest


def test_the_threshold_averages_the_smallest_activations() -> None:
    dictionary = make(8, 40, 4)
    expected = 0.0
    for seed in range(20):
        out = dictionary.losses(rows(30, 8, seed))
        smallest = out.terms["smallest_active"].item()
        expected = smallest if seed == 0 else 0.95 * expected + 0.05 * smallest
        dictionary.after_step_(out.terms, GO)
        assert dictionary.threshold.item() == pytest.approx(expected, rel=1e-12)
        before = dictionary.threshold.clone()
        dictionary.after_step_({"smallest_active": torch.tensor(torch.nan, dtype=torch.float64)}, FROZEN)
        dictionary.after_step_({"smallest_active": before * 7}, FROZEN)
        assert torch.equal(dictionary.threshold, before)


def test_inference_goes_by_the_threshold_and_not_by_the_batch() -> None:
    dictionary = make(16, 200, 8)
    for seed in range(30):
        dictionary.after_step_(dictionary.losses(rows(200, 16, seed)).terms, GO)
    x = rows(500, 16, 99)
    with torch.no_grad():
        f = dictionary.encode(x)
        pre = dictionary.pre_activations(x)
        assert torch.equal(f, torch.where(pre > dictionary.threshold, pre, 0.0)) and dictionary.threshold > 0
        assert torch.equal(dictionary.encode(x[:1]), f[:1]) or torch.allclose(dictionary.encode(x[:1]), f[:1])
        assert 7 < (f > 0).sum() / 500 < 9  # k features per row, on average
        assert torch.allclose(dictionary(x), dictionary.decode(f))


def test_the_threshold_is_state_and_no_parameter() -> None:
    dictionary = make(8, 40, 4)
    assert set(dictionary.state_dict()) == {*dict(dictionary.named_parameters()), "threshold"}
    assert "threshold" not in dict(dictionary.named_parameters())


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 41}, {"k": 4, "aux_k": 41}, {"k": 4, "aux_k": 0}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    tensors = (torch.randn(40, 12), torch.zeros(40), torch.randn(40, 12), torch.zeros(12))
    with pytest.raises(UserError, match=r"architecture\.(aux_)?k is \d+.*d_sae = 40"):
        BatchTopKDictionary(*tensors, **settings)  # type: ignore[arg-type]
