"""What every architecture has to do, one site or two, with and without a skip connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.config import DictionaryConfig, TrainingConfig
from sae_tools.dictionaries import BatchTopKDictionary, Codes, Dictionary, JumpReLUDictionary
from sae_tools.dictionaries.formats import export_saelens, load_dictionary
from sae_tools.models.sites import Site
from sae_tools.spaces import Space
from sae_tools.training.step import training_step
from sae_tools.training.trainee import Trainee
from tests.dictionaries.reference import (
    KINDS,
    VARIANTS,
    check_step,
    dense_above,
    make,
    parameters_of,
    reference_loss,
    rows,
)

pytestmark = [pytest.mark.parametrize("variant", VARIANTS), pytest.mark.parametrize("kind", KINDS)]


def arguments_for(dictionary: Dictionary, x: Tensor, seed: int = 5) -> dict[str, Any]:
    """Everything that a step may be given at once."""
    g = torch.Generator().manual_seed(seed)
    target, pull = torch.randn(2, len(x), dictionary.d_out, generator=g).to(x.dtype)
    dead = torch.rand(dictionary.d_sae, generator=g) < (seed % 4) / 3
    return {"target": target, "pull": pull / max(1, len(x)), "dead": dead, "l1": 0.7} | (
        {} if dictionary.d_in != dictionary.d_out or seed % 2 else {"target": None}
    )


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
@settings(max_examples=12)
@given(d=st.integers(1, 16), d_sae=st.integers(1, 40), n=st.integers(1, 30), seed=st.integers(0, 99))
def test_gradients_are_those_of_the_formulas(
    kind: str, variant: str, share: float, d: int, d_sae: int, n: int, seed: int
):
    dictionary, x = make(kind, variant, d=d, d_sae=d_sae, seed=seed), rows(n, d)
    with dense_above(share):
        check_step(dictionary, x, 1e-9, **arguments_for(dictionary, x, seed))


@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
def test_in_single_precision(kind: str, variant: str, share: float, n: int) -> None:
    """By other kernels than in double precision."""
    dictionary, x = make(kind, variant, d=32, d_sae=64, dtype=torch.float32), rows(n, 32, dtype=torch.float32)
    with dense_above(share):
        check_step(dictionary, x, 1e-5, **arguments_for(dictionary, x))
        check_step(dictionary, x, 1e-5, l1=0.3, target=arguments_for(dictionary, x)["target"])


def test_gradients_are_finite_differences(kind: str, variant: str) -> None:
    """Central differences of the formulas along a random direction of every parameter."""
    dictionary, x = make(kind, variant), rows(25, 12)
    arguments = arguments_for(dictionary, x)
    ours = torch.autograd.grad(dictionary.losses(x, **arguments).loss, list(dictionary.parameters()))
    P = {name: p.detach() for name, p in parameters_of(dictionary).items()}
    for (name, p), gradient in zip(P.items(), ours, strict=True):
        step = 1e-6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        up, down = (reference_loss(dictionary, x, {**P, name: p + sign * step}, P, **arguments) for sign in (1, -1))
        assert float(up - down) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-5, abs=1e-12), name


def test_shapes_and_precisions(kind: str, variant: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        dictionary, x = make(kind, variant).to(dtype), rows(7, 12, dtype=dtype)
        f = dictionary.encode(x)
        assert f.shape == (7, 40) and f.dtype == dtype and (f >= 0).all() and (f > 0).any()
        codes = Codes(f, torch.arange(40).expand(7, 40))
        for made in (dictionary(x), dictionary.decode(f, x), dictionary.decode(codes, x)):
            assert made.shape == (7, dictionary.d_out) and made.dtype == dtype and torch.isfinite(made).all()
        tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(dictionary.decode(f, x), dictionary(x), atol=tolerance)
        assert torch.allclose(dictionary.decode(codes, x), dictionary(x), atol=tolerance)
        assert dictionary.row_losses(x, target=torch.zeros(7, dictionary.d_out, dtype=dtype), l1=0.5).shape == (7,)
        assert dictionary.decoder_norms.shape == (40,) and not dictionary.decoder_norms.requires_grad


def test_equal_bits_every_time_and_nothing_changes(kind: str, variant: str) -> None:
    dictionary, x = make(kind, variant, dtype=torch.float32), rows(60, 12, dtype=torch.float32)
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    for share in (0.0, 1.0):
        with dense_above(share):
            first, second = (training_step(dictionary, x, **arguments_for(dictionary, x)) for _ in range(2))
        assert torch.equal(first.loss, second.loss) and torch.equal(first.fired, second.fired)
        assert all(torch.equal(a, b) for a, b in zip(first.gradients, second.gradients, strict=True))
        assert torch.equal(dictionary.encode(x), dictionary.encode(x))
    assert all(torch.equal(before[name], value) for name, value in dictionary.state_dict().items())
    assert all(p.grad is None for p in dictionary.parameters())


def test_row_losses_average_to_the_loss(kind: str, variant: str) -> None:
    dictionary, x = make(kind, variant), rows(50, 12)
    target = arguments_for(dictionary, x)["target"]
    out = dictionary.losses(x, target=target, l1=0.7)
    if isinstance(dictionary, BatchTopKDictionary):
        dictionary.after_step_(out.terms, torch.zeros(()))
        dictionary.threshold.mul_(1 - 1e-9)  # what the batch kept lies above it
    assert torch.allclose(dictionary.row_losses(x, target=target, l1=0.7).mean(), out.loss)


def test_an_empty_batch(kind: str, variant: str) -> None:
    dictionary, x = make(kind, variant, dtype=torch.float32), torch.zeros(0, 12)
    assert dictionary.encode(x).shape == (0, 40) and dictionary(x).shape == (0, dictionary.d_out)
    target = torch.zeros(0, dictionary.d_out)
    assert dictionary.row_losses(x, target=target).shape == (0,)
    out = dictionary.losses(x, target=target, l1=0.5)
    assert out.fired.sum() == 0 and out.fired.shape == (40,)


def test_features_that_never_fire(kind: str, variant: str) -> None:
    dictionary, x = make(kind, variant), rows(30, 12)
    with torch.no_grad():
        dictionary.b_enc[25:] = -1e3
    arguments = arguments_for(dictionary, x) | {"dead": None}
    out = dictionary.losses(x, **arguments)
    assert (out.fired[25:] == 0).all() and (dictionary.encode(x)[:, 25:] == 0).all()
    gradients = dict(
        zip(
            dict(dictionary.named_parameters()),
            torch.autograd.grad(out.loss, list(dictionary.parameters())),
            strict=True,
        )
    )
    assert all((gradients[name][25:] == 0).all() for name in gradients if len(gradients[name]) == 40)
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e3)
    skipped = 0 if dictionary.W_skip is None else x @ dictionary.W_skip
    assert torch.allclose(dictionary(x), dictionary.b_dec + skipped)
    assert check_step(dictionary, x, 1e-9, **arguments).fired.sum() == 0


def test_dead_features_get_gradients_where_there_is_an_auxiliary_loss(kind: str, variant: str) -> None:
    dictionary, x = make(kind, variant), rows(50, 12)
    dead = torch.arange(40) < 10
    arguments = arguments_for(dictionary, x) | {"pull": None}
    outs = [dictionary.losses(x, **(arguments | {"dead": mask})) for mask in (dead, None, torch.zeros_like(dead))]
    with_dead, without, with_none = (torch.autograd.grad(out.loss, list(dictionary.parameters())) for out in outs)
    has_loss = dictionary.aux_coefficient > 0
    assert has_loss == ("topk" in kind or kind == "matryoshka") == ("aux" in outs[0].terms)
    assert all(torch.equal(a, b) for a, b in zip(without, with_none, strict=True))
    for a, b in zip(with_dead[:3], without[:3], strict=True):
        assert torch.equal(a[10:], b[10:]) and torch.allclose(a[:10], b[:10]) != has_loss


def space(width: int, name: str) -> Space:
    """A site's own coordinates."""
    site, zeros = Site(name, 0, f"blocks.0.hook_{name}", width), torch.zeros(width)
    return Space("resid_update", site, width, width, "none", 1.0, zeros, zeros)


def trainee(dictionary: Dictionary, kind: str) -> Trainee:
    architecture: dict[str, Any] = {"kind": kind.split()[0]}
    if dictionary.aux_coefficient > 0:
        architecture |= {"k": 5, "dead_after_tokens": 200}
    cfg = DictionaryConfig.model_validate({"site": "mlp_out@0", "d_sae": 40, "architecture": architecture})
    training = TrainingConfig(batch_size=50, warmup_steps=0, lr=1e-2, clip_norm=0.5)
    reads, writes = space(dictionary.d_in, "mlp_out"), None
    if dictionary.d_out != dictionary.d_in:
        writes = space(dictionary.d_out, "attn_out")
    return Trainee("it", reads.site, cfg, training, reads, dictionary, torch.ones(()), writes)


def run(it: Trainee, first: int, last: int) -> None:
    for step in range(first, last):
        x = rows(50, it.dictionary.d_in, seed=step, dtype=torch.float32)
        target = torch.sin(3 * x[:, : it.dictionary.d_out])
        it.apply(it.propose(x, step, None, target), step, 40, len(x), torch.zeros(()))


def test_invariants_after_steps(kind: str, variant: str) -> None:
    it = trainee(make(kind, variant, dtype=torch.float32), kind)
    dictionary, before = it.dictionary, {n: p.detach().clone() for n, p in it.dictionary.named_parameters()}
    run(it, 0, 20)
    assert dictionary.unit_decoder == (not kind.endswith("decoder-norm"))
    norms = dictionary.decoder_norms
    assert bool(((norms - 1).abs() < 1e-5).all()) == dictionary.unit_decoder
    if isinstance(dictionary, JumpReLUDictionary):
        assert (dictionary.threshold >= 0).all()
    if isinstance(dictionary, BatchTopKDictionary):
        assert dictionary.threshold > 0
    assert all(not torch.equal(before[name], p) for name, p in dictionary.named_parameters())
    averages = it.averages()
    assert averages["fvu"] > 0 and ("l1" in averages) == (kind[:4] in ("relu", "gate"))
    gradient = dict(
        zip(
            before,
            it.propose(
                rows(50, 12, dtype=torch.float32), 30, None, None if dictionary.d_out == 12 else torch.ones(50, 9)
            ).gradients,
            strict=True,
        )
    )["W_dec"]
    parallel = (gradient * dictionary.W_dec).sum(1).abs().max() / gradient.norm(dim=1).max()
    assert bool(parallel < 1e-5) == dictionary.unit_decoder


def test_a_saved_state_goes_on_bit_for_bit(kind: str, variant: str) -> None:
    it = trainee(make(kind, variant, dtype=torch.float32), kind)
    run(it, 0, 8)
    saved = {name: value.clone() for name, value in it.tensors().items()}
    again = trainee(make(kind, variant, seed=1, dtype=torch.float32), kind)
    again.load_tensors(saved)
    for one in (it, again):
        run(one, 8, 12)
    ours, theirs = it.tensors(), again.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["parameter.encoder"], saved["parameter.encoder"])


def test_written_as_a_saelens_folder_and_read_again(kind: str, variant: str, tmp_path: Path) -> None:
    it = trainee(make(kind, variant, dtype=torch.float32), kind)
    run(it, 0, 8)
    dictionary, x = it.dictionary, rows(200, 12, dtype=torch.float32)
    export_saelens(dictionary, it.space, tmp_path / "written", {}, writes=it.target_space)
    again = load_dictionary(tmp_path / "written")
    f, f_again = dictionary.encode(x) * dictionary.decoder_norms, again.encode(x) * again.decoder_norms
    same = ((f > 0) == (f_again > 0)).all(1)  # but where one is at its threshold
    assert same.float().mean() > 0.98 and (f > 0).any()
    assert torch.allclose(f[same], f_again[same], rtol=1e-4, atol=1e-5)
    assert torch.allclose(dictionary(x)[same], again(x)[same], rtol=1e-4, atol=1e-5)
