"""What is chosen from the encoder's product, in any micro-batches and either precision, against the whole product."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries.sparse import Selection, select, select_above, select_largest, select_top_k
from sae_tools.dictionaries.sparse.product import affine


@pytest.fixture(params=[10**9, 3000], ids=["whole", "micro-batches"], autouse=True)
def micro_batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.MICRO_BATCH_ENTRIES, "cpu", request.param)
    monkeypatch.setattr(select, "MIN_MICRO_BATCH", 1)


def problem(rows: int, d_in: int, d_sae: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(centred, encoder, b_enc, pre-activations)."""
    g = torch.Generator().manual_seed(seed)
    centred, encoder = torch.randn(rows, d_in, generator=g), torch.randn(d_sae, d_in, generator=g) / d_in**0.5
    b_enc = 0.2 * torch.randn(d_sae, generator=g)
    return centred, encoder, b_enc, torch.addmm(b_enc, centred, encoder.T)


def dense(selection: Selection, d_sae: int) -> tuple[Tensor, Tensor]:
    """(which, their values and 0 elsewhere)."""
    pairs = selection.pairs
    row = torch.repeat_interleave(torch.arange(pairs.rows), pairs.offsets.diff())
    mask = torch.zeros(pairs.rows, d_sae, dtype=torch.bool)
    mask[row, pairs.features.long()] = True
    assert mask.sum() == len(pairs) == len(selection.values)  # nothing twice
    values = torch.zeros(pairs.rows, d_sae)
    values[row, pairs.features.long()] = selection.values
    return mask, values


def top_mask(pre: Tensor, k: int) -> Tensor:
    return torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(k, dim=-1).indices, True)


def test_top_k_equals_that_of_the_whole_product() -> None:
    centred, encoder, b_enc, pre = problem(50, 16, 300)
    selection, none = select_top_k(centred, encoder, b_enc, 7)
    mask, values = dense(selection, 300)
    assert none is None
    assert torch.equal(mask, top_mask(pre, 7))
    assert torch.allclose(values[mask], pre[mask], atol=1e-5)


@pytest.mark.parametrize("n_dead", [0, 1, 5, 40, 300])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_largest_of_dead_features(n_dead: int, precision: select.Precision) -> None:
    centred, encoder, b_enc, pre = problem(50, 16, 300)
    dead = torch.randperm(300, generator=torch.Generator().manual_seed(1)) < n_dead
    alone, _ = select_top_k(centred, encoder, b_enc, 7, precision=precision)
    selection, found = select_top_k(centred, encoder, b_enc, 7, precision=precision, dead=dead, aux_k=20)
    assert torch.equal(dense(selection, 300)[0], dense(alone, 300)[0])
    if n_dead == 0:
        assert found is None
        return
    assert found is not None
    mask, values = dense(found, 300)
    wanted = min(20, n_dead)
    assert (mask.sum(1) == wanted).all() and not mask[:, ~dead].any()
    assert torch.allclose(values[mask], pre[mask], atol=1e-5)  # evaluated exactly in either precision
    if precision == "float32":
        assert torch.equal(mask, top_mask(pre.masked_fill(~dead, -torch.inf), wanted))


@given(rows=st.integers(1, 30), d_sae=st.integers(1, 200), k=st.integers(1, 40))
def test_bfloat16_chooses_the_same_and_evaluates_exactly(rows: int, d_sae: int, k: int) -> None:
    k = min(k, d_sae)
    centred, encoder, b_enc, pre = problem(rows, 24, d_sae, seed=d_sae)
    mask, values = dense(select_top_k(centred, encoder, b_enc, k, precision="bfloat16")[0], d_sae)
    assert (mask.sum(1) == k).all()
    assert torch.allclose(values[mask], pre[mask], atol=1e-5)
    positive = top_mask(pre, k) & (pre > 0)  # what is not positive does not fire, whichever it is
    assert (mask & positive).sum() >= 0.999 * positive.sum()


@given(rows=st.integers(1, 40), d_sae=st.integers(1, 100), share=st.floats(0, 1))
def test_the_largest_of_the_whole_batch(rows: int, d_sae: int, share: float) -> None:
    """BatchTopK: exactly so many, unless fewer are positive."""
    count = max(1, round(share**2 * rows * d_sae))
    centred, encoder, b_enc, pre = problem(rows, 8, d_sae, seed=rows)
    mask, values = dense(select_largest(centred, encoder, b_enc, count)[0], d_sae)
    wanted = min(count, int((pre > 0).sum()))
    assert mask.sum() == wanted
    assert torch.allclose(values[mask], pre[mask], atol=1e-5)
    assert torch.allclose(values[mask].sort().values, pre.flatten().sort().values[pre.numel() - wanted :], atol=1e-5)


def test_the_largest_where_nearly_all_are_in_a_few_rows() -> None:
    """The threshold is first guessed from some of the rows, which here say nothing about the others."""
    centred, encoder, b_enc, _ = problem(64, 16, 200)
    centred[:60] *= 1e-3
    pre = torch.addmm(b_enc - 5, centred, encoder.T)
    for count in (1, 10, 100):
        mask, _ = dense(select_largest(centred, encoder, b_enc - 5, count)[0], 200)
        assert mask.sum() == min(count, int((pre > 0).sum()))


def test_equal_numbers_are_taken_in_order_until_there_are_enough() -> None:
    encoder, b_enc = torch.zeros(50, 4), torch.ones(50)
    found, _ = select_largest(torch.randn(6, 4), encoder, b_enc, 70)
    assert found.pairs.offsets.tolist() == [0, 50, 70, 70, 70, 70, 70]


def test_fixed_shapes_choose_the_same() -> None:
    """The way of accelerators: exactly `count`, whatever their sign."""
    centred, encoder, b_enc, pre = problem(40, 8, 100)
    for count in (1, 77, 1500, 4000):
        mask, values = dense(select._largest_fixed(centred, encoder, b_enc, count, None, 0)[0], 100)
        assert mask.sum() == count
        assert torch.allclose(values[mask].sort().values, pre.flatten().sort().values[4000 - count :], atol=1e-5)


def test_one_product_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of very different length, and fewer positive numbers than are wanted: neither takes a second product."""
    products = []
    once = select.micro_batches

    def counted(*arguments: Tensor) -> Iterator[Tensor]:
        products.append(1)
        yield from once(*arguments)

    monkeypatch.setattr(select, "micro_batches", counted)
    monkeypatch.setitem(select.MICRO_BATCH_ENTRIES, "cpu", 10**9)
    centred, encoder, b_enc, _ = problem(2048, 8, 400)
    centred *= torch.randn(2048, 1, generator=torch.Generator().manual_seed(1)).exp()
    for shift, count in ((0, 2048 * 8), (-30, 2048 * 8)):
        products.clear()
        select_largest(centred, encoder, b_enc + shift, count)
        assert len(products) == 1


def test_batches_without_rows() -> None:
    centred, encoder, b_enc, _ = problem(0, 8, 40)
    for found in (
        select_top_k(centred, encoder, b_enc, 3)[0],
        select_top_k(centred, encoder, b_enc, 3, precision="bfloat16")[0],
        select_above(centred, encoder, b_enc, b_enc, 0.1),
        select_largest(centred, encoder, b_enc, 0)[0],
    ):
        assert found is not None and len(found.pairs) == 0 and found.pairs.rows == 0


def test_above_thresholds() -> None:
    centred, encoder, b_enc, pre = problem(40, 8, 100)
    threshold = torch.linspace(-1, 3, 100)
    found = select_above(centred, encoder, b_enc, threshold, max_density=1.0)
    assert found is not None
    mask, values = dense(found, 100)
    assert torch.equal(mask, pre > threshold) and torch.allclose(values[mask], pre[mask], atol=1e-5)
    density = mask.float().mean().item()
    assert select_above(centred, encoder, b_enc, threshold, max_density=density / 2) is None
    assert select_above(centred, encoder, b_enc, threshold + 100, max_density=0.5) is not None  # nothing active


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_the_product_with_its_bias(dtype: torch.dtype, rows: int) -> None:
    centred, encoder, b_enc, pre = problem(rows, 24, 70)
    found = affine(centred.to(dtype), encoder.to(dtype), b_enc.to(dtype))
    assert found.dtype == dtype and not found.requires_grad
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 0.03
    assert torch.allclose(found.float(), pre, atol=tolerance, rtol=tolerance)
    apart = affine(centred.T.contiguous().T.to(dtype), encoder.to(dtype), b_enc.to(dtype))  # not contiguous
    assert torch.allclose(apart.float(), pre, atol=tolerance, rtol=tolerance)
