"""ReLU with L1: value and gradients against the formulas, and the invariances of the two forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries import ReLUDictionary


def make(d: int, d_sae: int, form: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> ReLUDictionary:
    g = torch.Generator().manual_seed(seed)
    shapes = ((d_sae, d), (d_sae,), (d_sae, d), (d,))
    tensors = (torch.randn(*shape, generator=g).to(dtype) / d**0.5 for shape in shapes)
    return ReLUDictionary(*tensors, form=form)  # type: ignore[arg-type]


def rows(n: int, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(7)).to(dtype) + 0.5


def formula(dictionary: ReLUDictionary, x: Tensor, l1: float) -> Tensor:
    """1/|X| Σ ‖x - x̂‖² + l1 Σ f_i (‖d_i‖), the loss of each row, written out."""
    f = torch.relu((x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc)
    norms = dictionary.W_dec.norm(dim=1) if dictionary.form == "decoder-norm" else torch.ones(dictionary.d_sae)
    return (x - f @ dictionary.W_dec - dictionary.b_dec).pow(2).sum(1) + l1 * (f * norms.to(f)).sum(1)


@pytest.mark.parametrize("form", ["unit-norm", "decoder-norm"])
@given(d=st.integers(1, 16), d_sae=st.integers(1, 40), n=st.integers(1, 30), l1=st.floats(0, 3))
def test_step_equals_the_formula(form: str, d: int, d_sae: int, n: int, l1: float) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        dictionary, x = make(d, d_sae, form, dtype=dtype), rows(n, d, dtype)
        out = dictionary.losses(x, l1=l1)
        reference = formula(dictionary, x, l1)
        assert torch.allclose(out.loss, reference.mean(), rtol=tolerance)
        assert torch.allclose(dictionary.row_losses(x, l1=l1), reference, rtol=tolerance, atol=tolerance)
        ours = torch.autograd.grad(out.loss, list(dictionary.parameters()))
        expected = torch.autograd.grad(reference.mean(), list(dictionary.parameters()))
        for a, b in zip(ours, expected, strict=True):
            assert a.is_contiguous() and (a - b).norm() <= tolerance * b.norm() + 1e-5 * tolerance
        f = dictionary.encode(x)
        assert torch.equal(out.fired, (f > 0).sum(0)) and out.fired.dtype == torch.int64
        assert out.terms["l0"].item() == pytest.approx((f > 0).sum().item() / n)
        assert torch.allclose(out.loss, out.terms["squared_error"] + l1 * out.terms["l1"])


def test_decoder_norm_form_ignores_how_a_feature_is_scaled() -> None:
    factor = torch.linspace(0.2, 5, 30, dtype=torch.float64)
    x = rows(50, 8)
    losses = {}
    for form in ("unit-norm", "decoder-norm"):
        dictionary = make(8, 30, form)
        before = dictionary.losses(x, l1=0.7).loss.detach()
        with torch.no_grad():
            dictionary.encoder *= factor.unsqueeze(1)
            dictionary.b_enc *= factor
            dictionary.W_dec /= factor.unsqueeze(1)
        losses[form] = torch.allclose(before, dictionary.losses(x, l1=0.7).loss)
    assert losses == {"unit-norm": False, "decoder-norm": True}


def test_only_the_unit_norm_form_keeps_its_decoder_at_norm_one() -> None:
    assert make(4, 8, "unit-norm").unit_decoder and not make(4, 8, "decoder-norm").unit_decoder


def test_without_active_features_the_reconstruction_is_the_bias() -> None:
    dictionary = make(8, 30, "unit-norm")
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e3)
    x = rows(5, 8)
    assert torch.equal(dictionary(x), dictionary.b_dec.expand(5, 8))
