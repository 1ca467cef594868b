"""What every Triton kernel must do, small.

`test_triton.py` runs this file in a process of its own: in Triton's interpreter on any machine, and compiled where
there is CUDA. By hand: TRITON_INTERPRET=1 python -m pytest tests/dictionaries/sparse/triton_cases.py
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries.sparse import triton_kernels, triton_select

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16]
SPECIAL = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def numbers(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    """Rows with what selection could stumble over."""
    x = draw(rows, columns, seed=seed)
    if kind == "ties":
        return (2 * x).round()
    if kind == "equal":
        return torch.full_like(x, -1.5)
    if kind == "none":
        return torch.full_like(x, -torch.inf)
    if kind == "few":  # finite
        return torch.where(x > 1.5, x, -torch.inf)
    if kind == "special":
        return SPECIAL.to(DEVICE)[torch.randint(len(SPECIAL), x.shape, generator=torch.Generator().manual_seed(seed))]
    if kind == "ascending":
        return torch.arange(x.numel(), device=DEVICE).view_as(x).float()
    return x


KINDS = ["random", "ties", "equal", "none", "few", "special", "ascending"]


def first_largest(x: Tensor, count: int) -> Tensor:
    """Where the `count` largest of each row are, ascending; of equal ones the first, NaN being largest. By a full
    sort, in float64."""
    wide = x.double()
    ranked = torch.where(wide.isnan(), torch.inf, wide)
    by_value = ranked.sort(dim=1, descending=True, stable=True).indices
    nan_first = wide.isnan().gather(1, by_value).sort(dim=1, descending=True, stable=True).indices
    return by_value.gather(1, nan_first)[:, :count].sort(1).values


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(7e37), b.nan_to_num(7e37))


def check_top_k(x: Tensor, k: int) -> None:
    values, indices = triton_kernels.top_k(x, k)
    assert values.dtype == torch.float32 and indices.dtype == torch.int32
    assert values.shape == indices.shape == (len(x), k)
    expected = x.float().topk(k, dim=1).values
    assert same(values.sort(1, descending=True).values, expected)
    assert not k or (0 <= int(indices.min()) and int(indices.max()) < x.shape[1])
    assert same(values, x.float().gather(1, indices.long()))
    assert all(len(row.unique()) == k for row in indices)
    signed_zeros = bool(((x == 0) & x.signbit()).any())  # -0 is below 0 in the order of bits, and equal in a sort
    if triton_select.group_size(x.shape[1], k, x.dtype.itemsize) is not None and not signed_zeros:
        assert torch.equal(indices.long(), first_largest(x, k))


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 300),
    share=st.floats(0, 1),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_top_k_of_short_rows(rows: int, columns: int, share: float, kind: str, dtype: torch.dtype, seed: int):
    check_top_k(numbers(kind, rows, columns, seed).to(dtype), max(1, round(share * columns)))


@settings(max_examples=12)
@given(
    columns=st.integers(4097, 9000),
    k=st.integers(1, 64),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@example(columns=4097, k=128, kind="ties", dtype=torch.float32, seed=0)
@example(columns=8192, k=1, kind="random", dtype=torch.bfloat16, seed=0)
def test_top_k_by_groups(columns: int, k: int, kind: str, dtype: torch.dtype, seed: int):
    assert triton_select.group_size(columns, k, dtype.itemsize)
    check_top_k(numbers(kind, 2, columns, seed).to(dtype), k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("columns", "k"), [(5000, 5000), (5000, 400), (20_000, 20_000), (20_000, 600), (300_000, 20), (4096, 0)]
)
def test_top_k_of_many_or_long(columns: int, k: int, dtype: torch.dtype):
    check_top_k(numbers("ties", 1, columns, 0).to(dtype), k)


def test_top_k_puts_a_group_together_from_ties_in_all_of_them():
    """All k in the last group, and a tie with the threshold in an earlier group that is not among the chosen."""
    x = torch.zeros(1, 6000, device=DEVICE)
    x[0, 5990:5997] = 2.0
    x[0, [3, 40, 700]] = 1.0
    check_top_k(x, 8)
    check_top_k(x, 9)


@pytest.mark.parametrize("columns", [200, 5000])
def test_rows_may_be_apart_and_transposed(columns: int):
    wide = draw(3, 2 * columns)
    check_top_k(wide[:, 7 : 7 + columns], 5)
    check_top_k(wide[:, ::2], 5)
    check_top_k(draw(columns, 3).T, 5)
    check_top_k(wide[:1, :columns].expand(3, columns), 5)


def test_what_cannot_be_chosen():
    values, indices = triton_kernels.top_k(draw(0, 5000), 3)
    assert values.shape == indices.shape == (0, 3)
    with pytest.raises(ValueError, match="a row has 5 entries, and 6"):
        triton_kernels.top_k(draw(2, 5), 6)
    with pytest.raises(TypeError, match="float16"):
        triton_kernels.top_k(draw(2, 5).half(), 2)
    with pytest.raises(ValueError, match="there are 10 entries, and 11"):
        triton_kernels.largest(draw(2, 5), 11)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 600),
    share=st.floats(0, 1),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@example(rows=7, columns=333, share=0.01, kind="special", dtype=torch.float32, seed=1)
@example(rows=7, columns=333, share=0.004, kind="equal", dtype=torch.bfloat16, seed=1)
def test_largest(rows: int, columns: int, share: float, kind: str, dtype: torch.dtype, seed: int):
    x = numbers(kind, rows, columns, seed).to(dtype)
    count = round(share**3 * x.numel())  # mostly few, as batches have it
    offsets, features = triton_kernels.largest(x, count)
    assert offsets.dtype == features.dtype == torch.int32
    assert len(offsets) == rows + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == len(features) == count
    of_pairs = torch.repeat_interleave(torch.arange(rows, device=DEVICE), offsets.diff())
    places = of_pairs * columns + features
    assert bool((places.diff() > 0).all())  # none twice, in order
    found = x.flatten()[places].float()
    assert same(found.sort(descending=True).values, x.flatten().float().topk(count).values)
    again, same_places = triton_kernels.largest_entries(x, count)
    assert same(again, found) and torch.equal(same_places, places)


def random_pairs(counts: list[int], d_sae: int, seed: int) -> tuple[Tensor, Tensor]:
    """(offsets, features) with so many pairs in each row; half of them one feature's, so that it has many."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(d_sae, (sum(counts),), generator=generator)
    features[torch.rand(len(features), generator=generator) < 0.5] = d_sae // 2
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return offsets.int().to(DEVICE), features.int().to(DEVICE)


def close(got: Tensor, exact: Tensor, of_magnitudes: Tensor) -> None:
    """Within float32's rounding of a sum whose terms have magnitudes that add up to `of_magnitudes`."""
    assert got.dtype == torch.float32 and got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= 1e-6 * of_magnitudes + 1e-30).all())


@settings(max_examples=12)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    d_sae=st.integers(1, 40),
    d=st.sampled_from([1, 3, 16, 77, 128, 130, 300, 512]),
    dtype=st.sampled_from(DTYPES),
    apart=st.booleans(),
    seed=st.integers(0, 99),
)
@example(counts=[0, 0], d_sae=5, d=7, dtype=torch.float32, apart=False, seed=0)
@example(counts=[400, 0, 400], d_sae=3, d=300, dtype=torch.float32, apart=True, seed=0)
def test_sums_and_dots(counts: list[int], d_sae: int, d: int, dtype: torch.dtype, apart: bool, seed: int):
    offsets, features = random_pairs(counts, d_sae, seed)
    a, b = draw(len(counts), d, seed=seed).to(dtype), draw(d_sae, d, seed=seed + 1).to(dtype)
    weights = draw(len(features), seed=seed + 2)
    if apart:
        a, b = torch.cat([a, a], 1)[:, :d], b.T.contiguous().T
        weights = torch.stack([weights, weights], 1)[:, 0]
    rows = torch.repeat_interleave(torch.arange(len(counts), device=DEVICE), offsets.diff())
    wide_a, wide_b, w, f = a.double(), b.double(), weights.double(), features.long()

    products = wide_a[rows] * wide_b[f]
    close(triton_kernels.dots(offsets, features, a, b), products.sum(1), products.abs().sum(1))

    dense = torch.zeros(len(counts), d_sae, dtype=torch.float64, device=DEVICE)
    dense.index_put_((rows, f), w, accumulate=True)
    size = torch.zeros_like(dense).index_put_((rows, f), w.abs(), accumulate=True)
    close(triton_kernels.sum_by_row(offsets, features, weights, b), dense @ wide_b, size @ wide_b.abs())

    pairs = triton_kernels.by_feature(offsets, features, d_sae)
    assert torch.equal(pairs.order.long(), torch.sort(f, stable=True).indices)
    assert torch.equal(pairs.rows.long(), rows[pairs.order.long()])
    assert torch.equal(pairs.starts.diff().long(), torch.bincount(f, minlength=d_sae))
    assert int(pairs.starts[0]) == 0
    close(triton_kernels.sum_by_feature(pairs, weights, a), dense.T @ wide_a, size.T @ wide_a.abs())


@pytest.mark.parametrize("before", [0, 1, 127, 200])
@pytest.mark.parametrize("long", [127, 128, 129, 256, 400])
def test_a_feature_of_many_pairs_beside_others(before: int, long: int):
    """Its chunks begin and end inside its pairs, at their ends, and not at all."""
    features = torch.cat([torch.zeros(before), torch.ones(long), torch.full((60,), 3.0)]).int().to(DEVICE)
    rows = len(features)
    offsets = torch.arange(rows + 1, device=DEVICE).int()
    weights, vectors = draw(rows), draw(rows, 20, seed=1)
    out = triton_kernels.sum_by_feature(triton_kernels.by_feature(offsets, features, 5), weights, vectors)
    terms = weights.double()[:, None] * vectors.double()
    exact = torch.zeros(5, 20, dtype=torch.float64, device=DEVICE).index_add_(0, features.long(), terms)
    close(out, exact, torch.zeros_like(exact).index_add_(0, features.long(), terms.abs()))


def test_no_rows():
    none = torch.empty(0, dtype=torch.int32, device=DEVICE)
    offsets = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    assert triton_kernels.sum_by_row(offsets, none, draw(0), draw(4, 3)).shape == (0, 3)
    assert triton_kernels.dots(offsets, none, draw(0, 3), draw(4, 3)).shape == (0,)
    pairs = triton_kernels.by_feature(offsets, none, 4)
    assert torch.equal(triton_kernels.sum_by_feature(pairs, draw(0), draw(0, 3)), torch.zeros(4, 3, device=DEVICE))


def test_the_same_bits_again():
    offsets, features = random_pairs([300, 20, 500], 9, 0)
    weights, vectors = draw(820), draw(3, 200)
    pairs = triton_kernels.by_feature(offsets, features, 9)
    once, again = (triton_kernels.sum_by_feature(pairs, weights, vectors) for _ in range(2))
    assert torch.equal(once, again)
