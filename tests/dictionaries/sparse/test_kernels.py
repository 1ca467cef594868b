"""Each implementation of the kernels that runs here, against brute force."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_tools.dictionaries.sparse import Pairs, kernels, numba_kernels, torch_kernels

BOTH = pytest.mark.parametrize("module", [torch_kernels, numba_kernels], ids=["torch", "numba"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_top_k(module: ModuleType, pre: Tensor, k: int) -> None:
    values, indices = module.top_k(pre, k)
    assert values.shape == indices.shape == (len(pre), k)
    assert values.dtype == pre.dtype and indices.dtype == torch.int32
    assert all(len(set(row)) == k for row in indices.tolist())
    assert torch.equal(pre.gather(1, indices.long()), values)
    assert torch.equal(values.sort(-1).values, pre.sort(-1).values[:, pre.shape[1] - k :])


@BOTH
@given(rows=st.integers(0, 40), d_sae=st.integers(1, 5000), share=st.floats(0, 1), levels=st.sampled_from([0, 1, 2, 9]))
def test_top_k(module: ModuleType, rows: int, d_sae: int, share: float, levels: int) -> None:
    """levels: how many different values there are (0: hardly two are equal), so that ties are common."""
    k = 1 + round(share**3 * (d_sae - 1))
    pre = random(rows, d_sae, seed=d_sae)
    check_top_k(module, (pre * levels).round() if levels else pre, k)


@BOTH
@pytest.mark.parametrize("d_sae", [64, 100, 2048, 2049, 8192, 10_000])
@pytest.mark.parametrize("k", [1, 32, 64])
def test_top_k_at_widths_around_its_blocks(module: ModuleType, d_sae: int, k: int) -> None:
    pre = random(50, d_sae)
    check_top_k(module, pre, k)
    check_top_k(module, pre.sort(-1).values, k)  # the largest all in one group
    check_top_k(module, pre.T.contiguous().T, k)  # not contiguous
    check_top_k(module, 1e30 * pre, k)


@BOTH
def test_top_k_of_what_is_not_finite(module: ModuleType) -> None:
    """Nothing is chosen twice and nothing outside the row, whatever stands in it."""
    pre = random(40, 3000)
    pre[0] = -torch.inf
    pre[1, 7:] = -torch.inf
    pre[2, ::2] = torch.inf
    pre[3, ::3] = torch.nan
    pre[4] = torch.nan
    pre[5] = 0
    values, indices = module.top_k(pre, 20)
    assert ((indices >= 0) & (indices < 3000)).all() and all(len(set(row)) == 20 for row in indices.tolist())
    assert (values[2] == torch.inf).all()
    assert torch.isnan(values[4]).all()
    assert set(range(7)) <= set(indices[1].tolist())


@BOTH
@given(rows=st.integers(1, 30), d_sae=st.integers(1, 4000), k=st.integers(1, 64))
def test_top_k_in_bfloat16(module: ModuleType, rows: int, d_sae: int, k: int) -> None:
    """The same among positive entries; what else is chosen is not positive either."""
    k = min(k, d_sae)
    pre = random(rows, d_sae, seed=d_sae).bfloat16()
    values, indices = module.top_k(pre, k)
    best = pre.float().sort(-1).values[:, d_sae - k :].relu()
    assert torch.equal(values.float().relu().sort(-1).values, best)
    assert all(len(set(row)) == k for row in indices.tolist())


@BOTH
@given(rows=st.integers(0, 40), d_sae=st.integers(1, 300), level=st.floats(-2, 4))
def test_above(module: ModuleType, rows: int, d_sae: int, level: float) -> None:
    pre = random(rows, d_sae, seed=rows)
    threshold = level + 0.3 * random(d_sae, seed=1)
    found = module.above(pre, threshold)
    assert found is not None
    offsets, features, values = found
    mask = (pre > threshold).numpy()
    assert offsets.tolist() == [0, *np.cumsum(mask.sum(1))]
    assert features.tolist() == np.nonzero(mask)[1].tolist()
    assert torch.equal(values, pre[torch.from_numpy(mask)])
    total = int(mask.sum())
    assert module.above(pre, threshold, total) is not None
    assert total == 0 or module.above(pre, threshold, total - 1) is None


def some_pairs(rows: int, d_sae: int, density: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(mask, offsets, features), features in no order within a row."""
    mask = torch.rand(rows, d_sae, generator=torch.Generator().manual_seed(seed)) < density
    parts = [row.nonzero().squeeze(1).flip(0).int() for row in mask]
    offsets = torch.tensor([0, *np.cumsum([len(part) for part in parts])], dtype=torch.int32)
    return mask, offsets, torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32)


@BOTH
@given(
    rows=st.integers(0, 40),
    d_sae=st.integers(1, 60),
    d=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_sums_and_products_over_pairs(
    module: ModuleType, rows: int, d_sae: int, d: int, density: float, dtype: torch.dtype
) -> None:
    if module is numba_kernels:
        dtype = torch.float32  # others are PyTorch's
    mask, offsets, features = some_pairs(rows, d_sae, density)
    a, b = random(rows, d, seed=1).to(dtype), random(d_sae, d, seed=2).to(dtype)
    weights = random(len(features), seed=3).to(dtype)
    row = torch.repeat_interleave(torch.arange(rows), mask.sum(1))
    dense = torch.zeros(rows, d_sae, dtype=torch.float64)
    dense[row, features.long()] = weights.double()

    def close(x: Tensor, y: Tensor) -> bool:
        return x.dtype == dtype and torch.allclose(x.double(), y, rtol=1e-5, atol=1e-5)

    products = (a.double() @ b.double().T)[row, features.long()]
    assert close(module.dots(offsets, features, a, b), products)
    assert close(module.dots(offsets, features, a.T.contiguous().T, b.T.contiguous().T), products)
    assert close(module.sum_by_row(offsets, features, weights, b), dense @ b.double())
    grouped = module.by_feature(offsets, features, d_sae)
    assert torch.equal(grouped.starts.long(), torch.nn.functional.pad(mask.sum(0).cumsum(0), (1, 0)))
    assert torch.equal(grouped.order.long(), torch.argsort(features, stable=True))
    assert torch.equal(grouped.rows.long(), row[grouped.order.long()])
    assert close(module.sum_by_feature(grouped, weights, a), dense.T @ a.double())


def test_pairs_count_and_total() -> None:
    mask, offsets, features = some_pairs(30, 20, 0.3)
    pairs = Pairs(features, offsets, 20)
    assert pairs.rows == 30 and len(pairs) == mask.sum()
    on = torch.arange(len(features)) % 2 == 0
    expected = np.bincount(features[on].numpy(), minlength=20)
    assert pairs.count(on).tolist() == expected.tolist()
    assert torch.allclose(pairs.total(2.5 * on.float()), 2.5 * torch.from_numpy(expected).float())


def test_threads_do_not_change_a_bit() -> None:
    pre, a, b = random(300, 3000), random(300, 70, seed=1), random(3000, 70, seed=2)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            values, indices = numba_kernels.top_k(pre, 20)
            pairs = Pairs.of_rows(indices, 3000)
            found.append((values, indices, numba_kernels.dots(pairs.offsets, pairs.features, a, b)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


def test_which_kernels_serve_what(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.kernels_for(torch.zeros(1)) is numba_kernels
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert kernels.kernels_for(torch.zeros(1, dtype=dtype)) is torch_kernels
    monkeypatch.setenv("SAE_TOOLS_KERNELS", "torch")
    assert kernels.kernels_for(torch.zeros(1)) is torch_kernels


@BOTH
@given(n=st.integers(0, 40), d=st.integers(1, 70))
def test_rows_of_a_matrix(module: ModuleType, n: int, d: int) -> None:
    """What the unit-norm constraint does before and after a step, against double precision."""
    vectors, directions = random(n, d, seed=d), random(n, d, seed=d + 1)
    if n > 2:
        directions[1] = 0
    expected = directions.double()
    expected = expected / expected.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    module.normalise_(directions)
    assert torch.allclose(directions.double(), expected, atol=1e-6)
    left = vectors.double() - (vectors.double() * expected).sum(-1, keepdim=True) * expected
    squares = module.remove_parallel_(vectors, directions)
    assert torch.allclose(vectors.double(), left, atol=1e-5)
    assert torch.allclose(squares.double(), left.pow(2).sum(-1), rtol=1e-4, atol=1e-6)


@BOTH
def test_rows_of_a_transposed_matrix(module: ModuleType) -> None:
    vectors = random(6, 9)
    turned = vectors.T.contiguous().T
    module.normalise_(turned)
    module.normalise_(vectors)
    assert torch.allclose(turned, vectors, atol=1e-6)
    assert torch.allclose(module.remove_parallel_(turned, vectors), torch.zeros(6), atol=1e-6)
