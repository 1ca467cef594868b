"""JumpReLU: the sparse and the dense step against the estimator's gradients written out in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries import JumpReLUDictionary, StepOutput, jumprelu
from sae_tools.errors import UserError

NAMES = ("encoder", "b_enc", "W_dec", "b_dec", "threshold")
ZERO = torch.zeros(())


def make(
    d: int, d_sae: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, shift: float = 0.0, **settings: Any
) -> JumpReLUDictionary:
    """shift: of the thresholds, which lie between 0 and 1 without it."""
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=g), dim=-1)
    encoder = W_dec + 0.3 * torch.randn(d_sae, d, generator=g)
    biases = 0.3 * torch.randn(d_sae, generator=g), 0.5 * torch.randn(d, generator=g)
    tensors = (encoder, biases[0], W_dec, biases[1], shift + torch.rand(d_sae, generator=g))
    return JumpReLUDictionary(*(t.to(dtype) for t in tensors), **settings)


def rows(n: int, d: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Every other column of a wider matrix, so that nothing may count on contiguous rows."""
    return torch.randn(n, 2 * d, generator=torch.Generator().manual_seed(seed)).to(dtype)[:, ::2]


def closed_form(dictionary: JumpReLUDictionary, x: Tensor, l1: float) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """(loss, penalty, activations, gradients), float64, without autograd.

    e = x - x̂; ∂‖e‖²/∂f = -2 e W_decᵀ. With c_t = ∂penalty/∂L0 of row t, the estimator of Rajamanoharan et al. (their
    equations 11 and 12, rectangle kernel) gives ∂/∂θ_i = -1/ε Σ_t [|z - θ| < ε/2] (θ_i ∂/∂f + l1 c_t).
    """
    W, b, D, c, theta = (getattr(dictionary, name).detach().double() for name in NAMES)
    x, n, eps = x.double(), len(x), dictionary.bandwidth
    z = (x - c) @ W.T + b
    on = z > theta
    f, l0 = z * on, on.sum(1).double()
    e = x - c - f @ D
    penalty, slope = l0, torch.ones_like(l0)
    if dictionary.penalty == "quadratic":
        t = dictionary.target_l0
        assert t is not None
        penalty, slope = 2 / t * (l0 - t) ** 2, 4 / t * (l0 - t)
    g_f = -2 * e @ D.T
    g_z = g_f * on
    near = ((z - theta).abs() < eps / 2).double()
    g_theta = -(near * (theta * g_f + l1 * slope[:, None])).sum(0) / eps
    g_decoder = -2 * f.T @ e
    g_c = -2 * e.sum(0) - g_z.sum(0) @ W
    gradients = [g_z.T @ (x - c), g_z.sum(0), g_decoder, g_c, g_theta]
    loss = (e.pow(2).sum(1) + l1 * penalty).mean()
    return loss, penalty.mean(), f, [gradient / n for gradient in gradients]


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-2 * tolerance)


def check_step(dictionary: JumpReLUDictionary, x: Tensor, l1: float, tolerance: float) -> StepOutput:
    out = dictionary.losses(x, l1=l1)
    loss, penalty, f, expected = closed_form(dictionary, x, l1)
    assert close(out.loss, loss, tolerance) and close(out.terms["l0_penalty"], penalty, tolerance)
    ours = torch.autograd.grad(out.loss, [getattr(dictionary, name) for name in NAMES])
    for name, a, b in zip(NAMES, ours, expected, strict=True):
        assert a.shape == b.shape and a.is_contiguous(), name
        assert close(a, b, tolerance), name
    assert torch.equal(out.fired, (f > 0).sum(0)) and out.fired.dtype == torch.int64
    assert out.terms["l0"].item() == pytest.approx((f > 0).sum().item() / len(x))
    assert torch.allclose(dictionary.row_losses(x, l1=l1).mean(), out.loss)
    return out


def is_sparse(dictionary: JumpReLUDictionary, x: Tensor) -> bool:
    return dictionary.select((x - dictionary.b_dec).detach(), None) is not None


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@given(
    d=st.integers(1, 20),
    d_sae=st.integers(1, 40),
    n=st.integers(1, 30),
    l1=st.floats(0, 3),
    bandwidth=st.floats(0.01, 3),
    target=st.one_of(st.none(), st.floats(0.01, 1)),
)
def test_step_equals_the_closed_form(
    dense: bool, d: int, d_sae: int, n: int, l1: float, bandwidth: float, target: float | None
) -> None:
    settings: dict[str, Any] = {"bandwidth": bandwidth}
    if target is not None:
        settings |= {"penalty": "quadratic", "target_l0": target * d_sae}
    dictionary, x = make(d, d_sae, seed=d * 41 + d_sae, **settings), rows(n, d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jumprelu, "DENSE_ABOVE", 0.0 if dense else 1.0)
        near = dictionary.pre_activations(x) > dictionary.threshold - bandwidth / 2
        assert is_sparse(dictionary, x) == (not dense or not near.any())
        check_step(dictionary, x, l1, 1e-10)


@pytest.mark.parametrize("shift", [0.0, 4.0])
@pytest.mark.parametrize("n", [1, 50])
def test_step_in_single_precision(n: int, shift: float) -> None:
    x = rows(n, 32, dtype=torch.float32)
    for settings in ({}, {"penalty": "quadratic", "target_l0": 3.0}):
        dictionary = make(32, 64, dtype=torch.float32, shift=shift, bandwidth=0.3, **settings)
        assert n == 1 or is_sparse(dictionary, x) == (shift > 0)
        check_step(dictionary, x, 0.5, 1e-5)


def test_features_below_their_threshold_are_looked_at_only_near_it() -> None:
    dictionary, x = make(16, 60, shift=3.0, bandwidth=0.2), rows(100, 16)
    selected = dictionary.select((x - dictionary.b_dec).detach(), None)
    assert selected is not None
    pairs = selected.active.pairs
    theta = dictionary.threshold[pairs.features.long()]
    assert (selected.active.values > theta - 0.1).all() and (selected.active.values < theta).any()
    out = check_step(dictionary, x, 1.0, 1e-10)
    assert out.fired.sum() < len(pairs)


def test_when_nothing_fires() -> None:
    for shift in (30.0, 1e3):  # some near their thresholds, and none at all
        dictionary, x = make(8, 30, shift=shift, bandwidth=55), rows(5, 8)
        pairs = dictionary.select((x - dictionary.b_dec).detach(), None)
        assert pairs is None or len(pairs.active.pairs) == 0
        assert (pairs is None) == (shift < 100)
        out = check_step(dictionary, x, 1.0, 1e-10)
        assert out.fired.sum() == 0 and torch.equal(dictionary(x), dictionary.b_dec.expand(5, 8))


def test_ties() -> None:
    dictionary, x = make(8, 30, shift=0.8, bandwidth=0.5), rows(40, 8)
    with torch.no_grad():
        for tensor in (dictionary.encoder, dictionary.b_enc, dictionary.threshold):
            tensor[10:20] = tensor[0:10]
    check_step(dictionary, x, 1.0, 1e-10)


def test_at_its_threshold_a_feature_is_off() -> None:
    dictionary = JumpReLUDictionary(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), torch.tensor([1.0] * 3))
    assert dictionary.encode(torch.tensor([[1.0, 1.5, 0.5]])).tolist() == [[0, 1.5, 0]]
    negative = JumpReLUDictionary(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), -torch.ones(3))
    assert negative.encode(torch.tensor([[-0.5, -2, 0.5]])).tolist() == [[0, 0, 0.5]]  # others' files may have it


def test_the_penalty_alone_raises_thresholds_and_the_target_brings_them_back() -> None:
    x = rows(200, 16)
    plain = make(16, 60, bandwidth=0.2)
    without, with_penalty = (torch.autograd.grad(plain.losses(x, l1=l1).loss, plain.threshold)[0] for l1 in (0.0, 10.0))
    assert (with_penalty <= without).all() and (with_penalty < without).any()
    for target, sign in ((1.0, -1), (50.0, 1)):
        dictionary = make(16, 60, bandwidth=0.2, penalty="quadratic", target_l0=target)
        (gradient,) = torch.autograd.grad(dictionary.losses(x, l1=1000.0).loss, dictionary.threshold)
        assert (sign * gradient).sum() > 0


def test_thresholds_do_not_fall_below_zero() -> None:
    dictionary = make(8, 30)
    with torch.no_grad():
        dictionary.threshold[:5] = -0.3
    above = dictionary.threshold[5:].clone()
    dictionary.after_step_({}, ZERO)
    assert (dictionary.threshold[:5] == 0).all() and torch.equal(dictionary.threshold[5:], above)


def test_step_reads_and_changes_nothing() -> None:
    for shift in (0.0, 4.0):
        dictionary, x = make(8, 40, shift=shift), rows(20, 8)
        before = {name: value.clone() for name, value in dictionary.state_dict().items()}
        first, second = (dictionary.losses(x, l1=0.3) for _ in range(2))
        assert torch.equal(first.loss, second.loss)
        found = [torch.autograd.grad(out.loss, list(dictionary.parameters())) for out in (first, second)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(torch.equal(before[name], value) for name, value in dictionary.state_dict().items())


@pytest.mark.parametrize("target", [None, 0, -1, 31])
def test_impossible_targets_are_refused(target: float | None) -> None:
    with pytest.raises(UserError, match=r"architecture\.target_l0 is .* at most 30"):
        make(8, 30, penalty="quadratic", target_l0=target)
