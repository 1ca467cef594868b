"""JumpReLU: what is looked at, and what moves thresholds (its gradients: test_battery.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae_tools.dictionaries import JumpReLUDictionary
from sae_tools.errors import UserError
from tests.dictionaries.reference import check_step, rows

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


def test_features_below_their_threshold_are_looked_at_only_near_it() -> None:
    dictionary, x = make(16, 60, shift=3.0, bandwidth=0.2), rows(100, 16)
    selected = dictionary.select((x - dictionary.b_dec).detach(), None)
    assert selected is not None
    pairs = selected.active.pairs
    theta = dictionary.threshold[pairs.features.long()]
    assert (selected.active.values > theta - 0.1).all() and (selected.active.values < theta).any()
    out = check_step(dictionary, x, 1e-9, l1=1.0)
    assert out.fired.sum() < len(pairs)


def test_when_nothing_fires() -> None:
    for shift in (30.0, 1e3):  # some near their thresholds, and none at all
        dictionary, x = make(8, 30, shift=shift, bandwidth=55), rows(5, 8)
        pairs = dictionary.select((x - dictionary.b_dec).detach(), None)
        assert pairs is None or len(pairs.active.pairs) == 0
        assert (pairs is None) == (shift < 100)
        out = check_step(dictionary, x, 1e-9, l1=1.0)
        assert out.fired.sum() == 0 and torch.equal(dictionary(x), dictionary.b_dec.expand(5, 8))


def test_ties() -> None:
    dictionary, x = make(8, 30, shift=0.8, bandwidth=0.5), rows(40, 8)
    with torch.no_grad():
        for tensor in (dictionary.encoder, dictionary.b_enc, dictionary.threshold):
            tensor[10:20] = tensor[0:10]
    check_step(dictionary, x, 1e-9, l1=1.0)


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


@pytest.mark.parametrize("target", [None, 0, -1, 31])
def test_impossible_targets_are_refused(target: float | None) -> None:
    with pytest.raises(UserError, match=r"architecture\.target_l0 is .* at most 30"):
        make(8, 30, penalty="quadratic", target_l0=target)
