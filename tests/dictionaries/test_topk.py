"""TopK: its sparse step against a dense one that autograd differentiates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries import StepOutput, TopKDictionary
from sae_tools.dictionaries.sparse import Pairs, decode_at, preactivations_at, torch_kernels
from sae_tools.dictionaries.sparse.select import DeadCandidates

NAMES = ("encoder", "b_enc", "W_dec", "b_dec")


def make(
    d: int, d_sae: int, k: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, aux_k: int | None = None
) -> TopKDictionary:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=g), dim=-1)
    encoder = W_dec + 0.3 * torch.randn(d_sae, d, generator=g)
    tensors = (encoder, 0.3 * torch.randn(d_sae, generator=g), W_dec, 0.5 * torch.randn(d, generator=g))
    return TopKDictionary(*(t.to(dtype) for t in tensors), k=k, aux_k=aux_k)


def rows(n: int, d: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense_losses(dictionary: TopKDictionary, x: Tensor, dead: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, squared error, auxiliary loss) of Gao et al., with dense codes; which features are on is taken over."""
    indices = dictionary.encode_sparse(x).indices
    mask = torch.zeros(x.shape[0], dictionary.d_sae, dtype=torch.bool).scatter(1, indices, True)
    pre = (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    f = torch.where(mask, pre, 0.0).relu()
    error = x - (f @ dictionary.W_dec + dictionary.b_dec)
    squared = error.pow(2).sum(-1).mean()
    if dead is None or not dead.any():
        return squared, squared, torch.zeros_like(squared)
    best = torch.where(dead, pre, -torch.inf).topk(min(dictionary.aux_k, int(dead.sum())), dim=-1).indices
    dead_mask = torch.zeros_like(mask).scatter(1, best, True)
    aux = (error.detach() - torch.where(dead_mask, pre, 0.0).relu() @ dictionary.W_dec).pow(2).sum(-1).mean()
    return squared + dictionary.aux_coefficient * aux, squared, aux


def gradients(dictionary: TopKDictionary, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [getattr(dictionary, name) for name in NAMES])


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-12)


def check_step(dictionary: TopKDictionary, x: Tensor, dead: Tensor | None, tolerance: float) -> StepOutput:
    out = dictionary.losses(x, dead=dead)
    loss, squared, aux = dense_losses(dictionary, x, dead)
    assert close(out.loss, loss, tolerance)
    assert close(out.terms["squared_error"], squared, tolerance) and close(out.terms["aux"], aux, tolerance)
    for name, ours, reference in zip(NAMES, gradients(dictionary, out.loss), gradients(dictionary, loss), strict=True):
        assert ours.shape == reference.shape and ours.is_contiguous(), name
        assert close(ours, reference, tolerance), name
    f = dictionary.encode(x)
    assert torch.equal(out.fired, (f > 0).sum(0)) and out.fired.dtype == torch.int64
    assert out.terms["l0"].item() == pytest.approx((f > 0).sum().item() / len(x))
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


def test_ties_and_features_that_no_row_uses() -> None:
    dictionary = make(8, 30, 4)
    with torch.no_grad():
        for tensor in (dictionary.encoder, dictionary.b_enc):
            tensor[10:20] = tensor[0:10]  # equal pre-activations
        dictionary.b_enc[25:] = -100
    out = check_step(dictionary, rows(40, 8), None, 1e-10)
    assert (out.fired[25:] == 0).all()
    for gradient in gradients(dictionary, dictionary.losses(rows(40, 8)).loss)[:3]:
        assert (gradient[25:] == 0).all()


def test_relu_comes_after_topk() -> None:
    dictionary = make(8, 30, 10)
    with torch.no_grad():
        dictionary.b_enc -= 2
    x = rows(100, 8)
    codes = dictionary.encode_sparse(x)
    l0 = (codes.values > 0).sum(-1)
    assert (codes.values >= 0).all() and l0.min() < 10
    assert torch.allclose(dictionary.decode(codes), dictionary.decode(dictionary.encode(x)))
    assert torch.allclose(dictionary(x), dictionary.decode(codes))
    check_step(dictionary, x, None, 1e-10)


def test_both_searches_for_dead_features_agree() -> None:
    """Off the CPU the auxiliary loss has fixed shapes and a mask; the loss is the same."""
    pre = make(8, 40, 4).pre_activations(rows(50, 8)).detach()
    for n_dead in (0, 1, 3, 6, 20, 40):
        dead = torch.arange(40) < n_dead
        counted, fixed = DeadCandidates(dead, 6, torch_kernels), DeadCandidates(dead, 6, torch_kernels)
        fixed.dead, fixed.columns = dead, None  # as off the CPU
        for part in pre.split(20):
            counted.see(part)
            fixed.see(part)
        few, all_six = counted.chosen(40), fixed.chosen(40)
        assert all_six is not None and (few is None) == (n_dead == 0)
        values, indices = all_six.values.view(50, 6), all_six.pairs.features.view(50, 6)
        alive = values > -torch.inf
        assert (indices[alive] < n_dead).all() and (alive.sum(-1) == min(6, n_dead)).all()
        if few is not None:
            n = min(6, n_dead)
            assert torch.equal(pre.gather(1, few.pairs.features.view(50, n).long()).flatten(), few.values)
            assert torch.equal(few.values.view(50, n).sort(-1).values, values.sort(-1).values[:, -n:])


def test_pre_activations_at_minus_infinity_stand_for_nothing() -> None:
    dictionary = make(8, 20, 4)
    x = rows(10, 8)
    values, indices = dictionary.pre_activations(x).detach().topk(6, dim=-1)
    cut = values.clone()
    cut[:, 4:] = -torch.inf

    def gradient(values: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        pairs, centred = Pairs.of_rows(indices, 20), x - dictionary.b_dec.detach()
        parameters = (dictionary.encoder, dictionary.b_enc, dictionary.b_dec)
        v = preactivations_at(values.flatten(), centred, *parameters, pairs).relu()
        return gradients(dictionary, (x - decode_at(v, dictionary.W_dec, pairs)).pow(2).sum())

    for a, b in zip(gradient(cut, indices), gradient(values[:, :4], indices[:, :4]), strict=True):
        assert torch.isfinite(a).all() and torch.allclose(a, b)


def test_aux_reaches_dead_features_only() -> None:
    dictionary = make(8, 40, 4, aux_k=6)
    x = rows(50, 8)
    dead = torch.arange(40) < 10
    with_aux = gradients(dictionary, dictionary.losses(x, dead=dead).loss)
    without = gradients(dictionary, dictionary.losses(x).loss)
    for a, b in zip(with_aux[:3], without[:3], strict=True):
        assert torch.equal(a[10:], b[10:]) and not torch.allclose(a[:10], b[:10])


def test_step_reads_and_changes_nothing() -> None:
    dictionary = make(8, 40, 4)
    x = rows(20, 8)
    before = [p.detach().clone() for p in dictionary.parameters()]
    first, second = dictionary.losses(x), dictionary.losses(x)
    assert torch.equal(first.loss, second.loss)
    for a, b in zip(gradients(dictionary, first.loss), gradients(dictionary, second.loss), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(before, dictionary.parameters(), strict=True):
        assert torch.equal(a, b) and b.grad is None


def test_row_losses_average_to_the_squared_error() -> None:
    dictionary, x = make(8, 40, 4), rows(20, 8)
    assert torch.allclose(dictionary.row_losses(x).mean(), dictionary.losses(x).terms["squared_error"])
