"""BatchTopK: its step against a dense one that autograd differentiates, and the threshold that inference goes by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries import BatchTopKDictionary, StepOutput
from sae_tools.dictionaries.batchtopk import smallest_positive
from sae_tools.errors import UserError

NAMES = ("encoder", "b_enc", "W_dec", "b_dec")
GO, FROZEN = torch.zeros(()), torch.ones(())


def make(
    d: int, d_sae: int, k: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, aux_k: int | None = None
) -> BatchTopKDictionary:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=g), dim=-1)
    encoder = W_dec + 0.3 * torch.randn(d_sae, d, generator=g)
    tensors = (encoder, 0.3 * torch.randn(d_sae, generator=g), W_dec, 0.5 * torch.randn(d, generator=g))
    return BatchTopKDictionary(*(t.to(dtype) for t in tensors), k=k, aux_k=aux_k)


def rows(n: int, d: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Every other column of a wider matrix, so that nothing may count on contiguous rows."""
    return torch.randn(n, 2 * d, generator=torch.Generator().manual_seed(seed)).to(dtype)[:, ::2]


def dense_losses(dictionary: BatchTopKDictionary, x: Tensor, dead: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, auxiliary loss, activations), everything dense: flat top-k over the batch, then ReLU."""
    pre = (x - dictionary.b_dec) @ dictionary.encoder.T + dictionary.b_enc
    chosen = pre.detach().flatten().topk(dictionary.k * len(x)).indices
    mask = torch.zeros(pre.numel(), dtype=torch.bool).index_fill(0, chosen, True).view(pre.shape)
    f = torch.where(mask, pre, 0.0).relu()
    error = x - (f @ dictionary.W_dec + dictionary.b_dec)
    squared, aux = error.pow(2).sum(-1).mean(), torch.zeros((), dtype=x.dtype)
    if dead is not None and dead.any():
        best = torch.where(dead, pre, -torch.inf).topk(min(dictionary.aux_k, int(dead.sum())), dim=-1).indices
        dead_mask = torch.zeros_like(mask).scatter(1, best, True)
        aux = (error.detach() - torch.where(dead_mask, pre, 0.0).relu() @ dictionary.W_dec).pow(2).sum(-1).mean()
    return squared + dictionary.aux_coefficient * aux, aux, f


def gradients(dictionary: BatchTopKDictionary, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [getattr(dictionary, name) for name in NAMES])


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-12)


def check_step(dictionary: BatchTopKDictionary, x: Tensor, dead: Tensor | None, tolerance: float) -> StepOutput:
    out = dictionary.losses(x, dead=dead)
    loss, aux, f = dense_losses(dictionary, x, dead)
    assert close(out.loss, loss, tolerance) and close(out.terms["aux"], aux, tolerance)
    for name, ours, reference in zip(NAMES, gradients(dictionary, out.loss), gradients(dictionary, loss), strict=True):
        assert ours.shape == reference.shape and ours.is_contiguous(), name
        assert close(ours, reference, tolerance), name
    assert torch.equal(out.fired, (f > 0).sum(0)) and out.fired.dtype == torch.int64
    assert out.terms["l0"].item() == pytest.approx((f > 0).sum().item() / len(x))
    smallest = f[f > 0].min().item() if (f > 0).any() else 0.0
    assert out.terms["smallest_active"].item() == pytest.approx(smallest, rel=tolerance)
    return out


@given(
    d=st.integers(1, 20),
    d_sae=st.integers(1, 40),
    n=st.integers(1, 30),
    k_share=st.floats(0, 1),
    dead_share=st.floats(0, 1),
    aux_share=st.floats(0, 1),
)
def test_step_equals_the_dense_one(
    d: int, d_sae: int, n: int, k_share: float, dead_share: float, aux_share: float
) -> None:
    k, aux_k = 1 + round(k_share * (d_sae - 1)), 1 + round(aux_share * (d_sae - 1))
    dictionary = make(d, d_sae, k, aux_k=aux_k, seed=d * 41 + d_sae)
    dead = torch.rand(d_sae, generator=torch.Generator().manual_seed(n)) < dead_share
    check_step(dictionary, rows(n, d), dead, 1e-10)


@pytest.mark.parametrize("k", [1, 8, 64])
@pytest.mark.parametrize("n", [1, 50])
def test_step_in_single_precision(k: int, n: int) -> None:
    dictionary = make(32, 64, k, dtype=torch.float32)
    dead = torch.arange(64) % 3 == 0
    for mask in (None, dead, torch.zeros(64, dtype=torch.bool), torch.ones(64, dtype=torch.bool)):
        check_step(dictionary, rows(n, 32, dtype=torch.float32), mask, 1e-5)


def test_rows_share_what_the_batch_may_use() -> None:
    dictionary, x = make(8, 40, 4), rows(30, 8)
    x[:3] *= 20
    _, _, f = dense_losses(dictionary, x, None)
    counts = (f > 0).sum(-1)
    assert counts.sum() == 4 * 30 and counts[:3].min() > 10 and counts.min() < 4
    check_step(dictionary, x, None, 1e-10)


def test_ties_are_cut_at_k_per_row() -> None:
    dictionary = make(8, 30, 4)
    with torch.no_grad():
        for tensor in (dictionary.encoder, dictionary.b_enc, dictionary.W_dec):
            tensor[10:20] = tensor[0:10]  # equal pre-activations, and equal decoder rows: it does not matter which
    x = rows(1, 8).expand(40, 8)
    out = dictionary.losses(x)
    loss, _, f = dense_losses(dictionary, x, None)
    assert out.fired.sum() == (f > 0).sum() == 160
    assert (dictionary.losses(x).loss - out.loss).abs() == 0  # the same ones every time
    pre = dictionary.pre_activations(x[:1])[0]
    assert out.terms["smallest_active"].item() == pytest.approx(pre.topk(4).values[-1].item()) and loss > 0


def test_a_batch_on_which_nothing_is_positive() -> None:
    dictionary = make(8, 30, 4)
    with torch.no_grad():
        dictionary.b_enc.sub_(100)
    x = rows(20, 8)
    out = check_step(dictionary, x, None, 1e-10)
    assert out.fired.sum() == 0 and out.terms["smallest_active"] == 0
    check_step(dictionary, x, torch.ones(30, dtype=torch.bool), 1e-10)
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
    dictionary = make(8, 40, 4, dtype=torch.float32)
    assert set(dictionary.state_dict()) == {*NAMES, "threshold"}
    assert {name for name, _ in dictionary.named_parameters()} == set(NAMES)


def test_step_reads_and_changes_nothing() -> None:
    dictionary = make(8, 40, 4)
    x, dead = rows(20, 8), torch.arange(40) < 10
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    first, second = dictionary.losses(x, dead=dead), dictionary.losses(x, dead=dead)
    assert torch.equal(first.loss, second.loss)
    for a, b in zip(gradients(dictionary, first.loss), gradients(dictionary, second.loss), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(before[name], value) for name, value in dictionary.state_dict().items())


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": 41}, {"k": 4, "aux_k": 41}, {"k": 4, "aux_k": 0}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    tensors = (torch.randn(40, 12), torch.zeros(40), torch.randn(40, 12), torch.zeros(12))
    with pytest.raises(UserError, match=r"architecture\.(aux_)?k is \d+.*d_sae = 40"):
        BatchTopKDictionary(*tensors, **settings)  # type: ignore[arg-type]
