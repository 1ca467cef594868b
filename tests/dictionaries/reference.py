"""Every architecture's objective written out densely, in the formulas' own terms, and what the code is compared with.

Whatever a formula takes as constant (which features are chosen, the error that dead features reconstruct, a frozen
decoder, the step at a threshold) is computed from `frozen` parameters, so that the objective is a function that finite
differences can be taken of. JumpReLU's is not differentiable in its thresholds: it enters as the linear function whose
slope is the estimator of Rajamanoharan et al. 2024 (arXiv 2407.14435, equations 11 and 12, rectangle kernel).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.dictionaries import (
    BatchTopKDictionary,
    Dictionary,
    GatedDictionary,
    JumpReLUDictionary,
    MatryoshkaDictionary,
    ReLUDictionary,
    StepOutput,
    TopKDictionary,
    gated,
    jumprelu,
    relu,
)

Parameters = dict[str, Tensor]

KINDS = (
    "topk",
    "batchtopk",
    "matryoshka",
    "relu",
    "relu decoder-norm",
    "gated",
    "gated decoder-norm",
    "jumprelu",
    "jumprelu quadratic",
)
VARIANTS = ("one site", "two sites", "skip", "two sites, skip")
"""Two sites: d_out is 3 less than d_in where that is possible, and b_dec is not subtracted."""


def make(
    kind: str,
    variant: str = "one site",
    *,
    d: int = 12,
    d_sae: int = 40,
    seed: int = 0,
    dtype=torch.float64,
    **more: Any,
) -> Dictionary:
    """A dictionary with random parameters."""
    g = torch.Generator().manual_seed(seed)
    two, skip = variant.startswith("two"), variant.endswith("skip")
    d_out = max(1, d - 3) if two else d
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_out, generator=g), dim=-1)
    if kind.endswith("decoder-norm"):
        W_dec *= 0.5 + torch.rand(d_sae, 1, generator=g)
    encoder = torch.randn(d_sae, d, generator=g) / d**0.5
    if not two:
        encoder = W_dec + 0.3 * encoder
    tensors = [encoder, 0.3 * torch.randn(d_sae, generator=g), W_dec, 0.5 * torch.randn(d_out, generator=g)]
    W_skip = 0.3 * torch.randn(d, d_out, generator=g).to(dtype) if skip else None
    settings: dict[str, Any] = {"subtract_b_dec": not two, "W_skip": W_skip}
    name, _, form = kind.partition(" ")
    more_tensors = torch.randn(2, d_sae, generator=g)
    if name in ("topk", "batchtopk", "matryoshka"):
        settings |= {"k": max(1, d_sae // 8), "aux_k": max(1, d_sae // 6)}
    if name == "matryoshka":
        settings["widths"] = sorted({max(1, d_sae // 7), max(1, d_sae // 3), d_sae})
    if name == "jumprelu":
        tensors.append(more_tensors[0].abs())
        settings |= {"bandwidth": 0.4}
        settings |= {"penalty": "quadratic", "target_l0": d_sae / 3} if form else {}
    if name == "gated":
        tensors += [0.4 * more_tensors[0], 0.3 * more_tensors[1]]
    if name in ("relu", "gated"):
        settings["form"] = form or "unit-norm"
    kinds = {
        "topk": TopKDictionary,
        "batchtopk": BatchTopKDictionary,
        "matryoshka": MatryoshkaDictionary,
        "relu": ReLUDictionary,
        "gated": GatedDictionary,
        "jumprelu": JumpReLUDictionary,
    }
    return kinds[name](*(t.to(dtype) for t in tensors), **{**settings, **more})


def rows(n: int, d: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Every other column of a wider matrix, so that nothing may count on contiguous rows."""
    return torch.randn(n, 2 * d, generator=torch.Generator().manual_seed(seed)).to(dtype)[:, ::2] + 0.2


@contextmanager
def dense_above(share: float):
    """The share of active features from which all are looked at: 0 always takes the dense way, 1 never."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (relu, gated, jumprelu):
            patch.setattr(module, "DENSE_ABOVE", share)
        yield


def parameters_of(dictionary: Dictionary) -> Parameters:
    """Copies in double precision, to be differentiated."""
    return {name: p.detach().double().requires_grad_() for name, p in dictionary.named_parameters()}


def reference_activations(dictionary: Dictionary, x: Tensor, P: Parameters, frozen: Parameters) -> Tensor:
    """What training takes for the features' activations, dense."""
    z, z0 = (_pre(dictionary, x, parameters) for parameters in (P, frozen))
    match dictionary:
        case TopKDictionary():
            return _only(z, z0.topk(dictionary.k, dim=-1).indices).relu()
        case BatchTopKDictionary():
            chosen = torch.zeros(z.numel(), dtype=torch.bool)
            chosen[z0.flatten().topk(dictionary.k * len(x)).indices] = True
            return torch.where(chosen.view(z.shape), z, 0.0).relu()
        case GatedDictionary():
            inner = x - P["b_dec"] if dictionary.subtract_b_dec else x
            return (z > 0) * (inner @ (P["encoder"] * P["r_mag"].exp()[:, None]).T + P["b_mag"]).relu()
        case JumpReLUDictionary():
            theta0 = frozen["threshold"]
            return z * (z > theta0) + theta0 * _step_at(dictionary, z0, P, frozen)
        case _:
            return z.relu()


def reference_loss(
    dictionary: Dictionary,
    x: Tensor,
    P: Parameters,
    frozen: Parameters,
    *,
    target: Tensor | None = None,
    dead: Tensor | None = None,
    l1: float = 0.0,
    pull: Tensor | None = None,
) -> Tensor:
    """The objective of the batch at the parameters P, with what is pulled added to it."""
    x = x.double()
    y = x if target is None else target.double()
    frozen = {name: p.detach() for name, p in frozen.items()}
    z, z0 = (_pre(dictionary, x, parameters) for parameters in (P, frozen))
    f = reference_activations(dictionary, x, P, frozen)
    made = _decode(f, x, P)
    squared, penalty = (y - made).pow(2).sum(1), 0.0
    norms = P["W_dec"].norm(dim=1) if getattr(dictionary, "form", "") == "decoder-norm" else torch.ones(len(P["b_enc"]))
    match dictionary:
        case MatryoshkaDictionary():
            nested = [(torch.arange(dictionary.d_sae) < width) * f for width in dictionary.widths]
            squared = torch.stack([(y - _decode(some, x, P)).pow(2).sum(1) for some in nested]).mean(0)
        case GatedDictionary():
            squared = squared + (y - _decode(z.relu(), x, {**frozen, "b_enc": P["b_enc"]})).pow(2).sum(1)
            penalty = (z.relu() * norms).sum(1)
        case ReLUDictionary():
            penalty = (f * norms).sum(1)
        case JumpReLUDictionary():
            l0 = ((z0 > frozen["threshold"]) + _step_at(dictionary, z0, P, frozen)).sum(1)
            t = dictionary.target_l0
            penalty = l0 if dictionary.penalty == "step" or t is None else 2 / t * (l0 - t) ** 2
    loss = (squared + l1 * penalty).mean()
    if dead is not None and dead.any() and dictionary.aux_coefficient > 0:
        assert isinstance(dictionary, TopKDictionary | BatchTopKDictionary)
        error = y - _decode(reference_activations(dictionary, x, frozen, frozen), x, frozen)
        some = torch.where(dead, z0, -torch.inf).topk(min(dictionary.aux_k, int(dead.sum())), dim=-1).indices
        loss = loss + dictionary.aux_coefficient * (error - _only(z, some).relu() @ P["W_dec"]).pow(2).sum(1).mean()
    return loss if pull is None else loss + (pull.double() * made).sum()


def check_step(dictionary: Dictionary, x: Tensor, tolerance: float, **arguments: Any) -> StepOutput:
    """Loss, counts and gradients of a step against the formulas' own."""
    out = dictionary.losses(x, **arguments)
    P = parameters_of(dictionary)
    frozen = {name: p.detach() for name, p in P.items()}
    assert close(out.loss, reference_loss(dictionary, x, frozen, frozen, **(arguments | {"pull": None})), tolerance)
    loss = reference_loss(dictionary, x, P, frozen, **arguments)
    expected = torch.autograd.grad(loss, list(P.values()), materialize_grads=True)
    ours = torch.autograd.grad(out.loss, list(dictionary.parameters()))
    for (name, p), a, b in zip(P.items(), ours, expected, strict=True):
        assert a.shape == p.shape and a.is_contiguous() and a.dtype == x.dtype, name
        assert close(a, b, tolerance), (name, a, b)
    f = reference_activations(dictionary, x.double(), frozen, frozen)
    assert torch.equal(out.fired, (f > 0).sum(0)) and out.fired.dtype == torch.int64
    assert out.terms["l0"].item() == pytest.approx((f > 0).sum().item() / len(x))
    y = arguments.get("target")
    error = (x if y is None else y).double() - _decode(f, x.double(), frozen)
    assert close(out.terms["squared_error"], error.pow(2).sum(1).mean(), tolerance)
    return out


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-2 * tolerance)


def _pre(dictionary: Dictionary, x: Tensor, P: Parameters) -> Tensor:
    return (x - P["b_dec"] if dictionary.subtract_b_dec else x) @ P["encoder"].T + P["b_enc"]


def _decode(f: Tensor, x: Tensor, P: Parameters) -> Tensor:
    made = f @ P["W_dec"] + P["b_dec"]
    return made + x @ P["W_skip"] if "W_skip" in P else made


def _only(z: Tensor, indices: Tensor) -> Tensor:
    return torch.where(torch.zeros_like(z, dtype=torch.bool).scatter(1, indices, True), z, 0.0)


def _step_at(dictionary: JumpReLUDictionary, z0: Tensor, P: Parameters, frozen: Parameters) -> Tensor:
    """What the estimator makes of a step of height 1 at the threshold when that moves: 0 where it has not."""
    near = (z0 - frozen["threshold"]).abs() < dictionary.bandwidth / 2
    return near * (frozen["threshold"] - P["threshold"]) / dictionary.bandwidth
