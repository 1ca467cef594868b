"""The sparse step in single precision against a dense one in double precision that autograd differentiates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries import Dictionary, ReLUDictionary, TopKDictionary
from sae_tools.dictionaries.base import Selected
from sae_tools.dictionaries.sparse import Selection, select

NAMES = ("encoder", "b_enc", "W_dec", "b_dec")


def tensors(d: int, d_sae: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=g), dim=-1)
    encoder = W_dec + 0.3 * torch.randn(d_sae, d, generator=g)
    return encoder, 0.3 * torch.randn(d_sae, generator=g), W_dec, 0.5 * torch.randn(d, generator=g)


def mask_of(selection: Selection, d_sae: int) -> Tensor:
    pairs = selection.pairs
    mask = torch.zeros(pairs.rows, d_sae, dtype=torch.bool)
    mask[torch.repeat_interleave(torch.arange(pairs.rows), pairs.offsets.diff()), pairs.features.long()] = True
    return mask


def dense_loss(dictionary: Dictionary, p: dict[str, Tensor], x: Tensor, selected: Selected | None, l1: float) -> Tensor:
    """The published objectives written out, in double precision; only which features are looked at is taken over."""
    pre = (x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]

    def on(selection: Selection | None) -> Tensor:
        return pre.relu() if selection is None else torch.where(mask_of(selection, dictionary.d_sae), pre, 0).relu()

    f = on(None if selected is None else selected.active)
    error = x - f @ p["W_dec"] - p["b_dec"]
    loss = error.pow(2).sum(-1).mean()
    if isinstance(dictionary, ReLUDictionary):
        lengths = p["W_dec"].norm(dim=-1) if dictionary.form == "decoder-norm" else torch.ones(dictionary.d_sae)
        loss = loss + l1 * (f * lengths).sum(-1).mean()
    if selected is not None and selected.dead is not None:
        made = on(selected.dead) @ p["W_dec"]
        loss = loss + dictionary.aux_coefficient * (error.detach() - made).pow(2).sum(-1).mean()
    return loss


def check(dictionary: Dictionary, x: Tensor, *, dead: Tensor | None = None, l1: float = 0.0) -> None:
    out = dictionary.losses(x, dead=dead, l1=l1)
    ours = torch.autograd.grad(out.loss, [getattr(dictionary, name) for name in NAMES])
    selected = dictionary.select((x - dictionary.b_dec).detach(), dead)
    p = {name: getattr(dictionary, name).detach().double().requires_grad_() for name in NAMES}
    loss = dense_loss(dictionary, p, x.double(), selected, l1)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    largest = 0.0
    for name, g, reference in zip(NAMES, ours, torch.autograd.grad(loss, list(p.values())), strict=True):
        assert g.is_contiguous(), name  # the fused optimiser reads memory, not strides
        largest = max(largest, reference.norm().item())
        assert (g - reference).norm() <= 1e-5 * reference.norm() + 1e-6 * largest, name


SHAPES = {"d": st.integers(1, 40), "d_sae": st.integers(1, 300), "n": st.integers(1, 60), "micro": st.booleans()}


@given(**SHAPES, share=st.floats(0, 1), dead_share=st.sampled_from([0.0, 0.2, 1.0]), bf16=st.booleans())
def test_topk(d: int, d_sae: int, n: int, micro: bool, share: float, dead_share: float, bf16: bool) -> None:
    k = 1 + round(share**2 * (d_sae - 1))
    dictionary = TopKDictionary(*tensors(d, d_sae, d + d_sae), k=k, aux_k=min(d_sae, 10))
    dictionary.selection_precision = "bfloat16" if bf16 else "float32"
    g = torch.Generator().manual_seed(n)
    x, dead = torch.randn(n, d, generator=g), torch.rand(d_sae, generator=g) < dead_share
    with in_micro_batches(micro):
        check(dictionary, x, dead=dead)


@given(**SHAPES, shift=st.sampled_from([-100.0, -2.0, -0.5, 1.0]), form=st.sampled_from(["unit-norm", "decoder-norm"]))
def test_relu(d: int, d_sae: int, n: int, micro: bool, shift: float, form: str) -> None:
    """From no feature active at all to most of them, where the step takes the dense way."""
    encoder, b_enc, W_dec, b_dec = tensors(d, d_sae, d + d_sae)
    scale = 1.0 if form == "unit-norm" else 1.7
    dictionary = ReLUDictionary(encoder, b_enc + shift, scale * W_dec, b_dec, form=form)  # type: ignore[arg-type]
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n))
    with in_micro_batches(micro):
        check(dictionary, x, l1=0.3)


def test_relu_takes_the_dense_way_by_its_density() -> None:
    encoder, b_enc, W_dec, b_dec = tensors(20, 200, 0)
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert ReLUDictionary(encoder, b_enc, W_dec, b_dec).select(x, None) is None
    assert ReLUDictionary(encoder, b_enc - 4, W_dec, b_dec).select(x, None) is not None


def test_both_ways_of_relu_give_the_same() -> None:
    encoder, b_enc, W_dec, b_dec = tensors(20, 200, 0)
    dictionary = ReLUDictionary(encoder, b_enc - 3, W_dec, b_dec, form="decoder-norm")
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    sparse, dense = dictionary.losses(x, l1=0.5), dictionary._losses_on_all(x, 0.5)
    assert torch.equal(sparse.fired, dense.fired) and sparse.terms.keys() == dense.terms.keys()
    for a, b in zip(sparse.terms.values(), dense.terms.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)
    parameters = list(dictionary.parameters())
    for a, b in zip(
        torch.autograd.grad(sparse.loss, parameters), torch.autograd.grad(dense.loss, parameters), strict=True
    ):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_inputs_that_are_not_contiguous() -> None:
    dictionary = TopKDictionary(*tensors(24, 100, 0), k=5)
    x = torch.randn(24, 30, generator=torch.Generator().manual_seed(0)).T
    assert not x.is_contiguous()
    check(dictionary, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_dtypes(dtype: torch.dtype) -> None:
    """Served by PyTorch's kernels; half precision as exactly as it can be."""
    parameters = tensors(24, 100, 0)
    x = torch.randn(30, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    for make in (lambda t: TopKDictionary(*t, k=5), lambda t: ReLUDictionary(*t)):
        dictionary, single = make([t.to(dtype) for t in parameters]), make([t.clone() for t in parameters])
        dictionary.selection_precision = "bfloat16"
        out, reference = dictionary.losses(x, l1=0.1), single.losses(x.float(), l1=0.1)
        assert out.loss.item() == pytest.approx(reference.loss.item(), rel=0.02)
        for g, p in zip(torch.autograd.grad(out.loss, list(dictionary.parameters())), parameters, strict=True):
            assert g.dtype == dtype and g.shape == p.shape and torch.isfinite(g).all()


class in_micro_batches:
    """Within it, a micro-batch is a few rows."""

    def __init__(self, wanted: bool):
        self.wanted = wanted

    def __enter__(self) -> None:
        self.before = select.MICRO_BATCH_ENTRIES["cpu"], select.MIN_MICRO_BATCH
        if self.wanted:
            select.MICRO_BATCH_ENTRIES["cpu"], select.MIN_MICRO_BATCH = 1000, 1

    def __exit__(self, *_: object) -> None:
        select.MICRO_BATCH_ENTRIES["cpu"], select.MIN_MICRO_BATCH = self.before
