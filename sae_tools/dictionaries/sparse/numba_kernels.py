"""The kernels on a CPU, compiled by numba where PyTorch's own leave most of the time: selection, products of pairs, and
sorting pairs by feature. What PyTorch does well (`embedding_bag`) stays PyTorch's.

Selection reads a row of pre-activations once: it takes the maximum of every group of `depth` columns, finds by
bisection a threshold that at least k groups reach, gathers what reaches it from those groups, and selects exactly k of
these few. Groups are strided by `LANES` columns, so that maxima are taken lane by lane in vector registers. bfloat16 is
read as int16, whose order is the same among positive numbers; negative ones all come after them, in no useful order,
which is enough for what ReLU follows.

Rows are dealt to as many threads as PyTorch has; a row's result does not depend on how many there are. Compiled code is
kept beside this file or in numba's own cache, and made again when this file changes.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.dictionaries.sparse import torch_kernels
from sae_tools.dictionaries.sparse.torch_kernels import ByFeature, largest_entries, sum_by_feature, sum_by_row

__all__ = [
    "above",
    "by_feature",
    "dots",
    "largest_entries",
    "normalise_",
    "remove_parallel_",
    "sum_by_feature",
    "sum_by_row",
    "top_k",
]

LANES = 64
MAX_DEPTH = 32
GROUPS_PER_K = 4
"""Groups are at least this many times k (where there are columns enough), so that few groups hold more than one of the
k largest."""
BISECTIONS = 10
ROWS_PER_THREAD = 16
"""Fewer rows than this are not worth another thread."""

_U = np.uintp  # indices known not to be negative: numba then needs no test for counting from the end


def _jit(function: Callable, **options: Any) -> Callable:
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy", **options}
    function = inspect.unwrap(function)  # from what checks types in the tests
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep compiled code in
        return numba.njit(**options)(function)


@cache
def _threads(pid: int, count: int) -> ThreadPoolExecutor:
    """Keyed by the process, since threads do not survive a fork."""
    return ThreadPoolExecutor(count, thread_name_prefix="sae_tools")


def _over_rows(kernel: Callable, rows: int, *args: Any) -> None:
    """kernel(*args, first, last) on parts of `rows`, in PyTorch's number of threads."""
    count = min(torch.get_num_threads(), max(1, rows // ROWS_PER_THREAD))
    bounds = [rows * i // count for i in range(count + 1)]
    parts = list(zip(bounds[:-1], bounds[1:], strict=True))
    if count == 1:
        kernel(*args, *parts[0])
        return
    pool = _threads(os.getpid(), torch.get_num_threads())
    others = [pool.submit(kernel, *args, *part) for part in parts[1:]]
    kernel(*args, *parts[0])
    for other in others:
        other.result()


def top_k(pre: Float[Tensor, "rows d_sae"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row, in any order, and their columns (int32, none twice).

    pre: float32 or bfloat16; of bfloat16, negative entries are chosen at random once no positive ones are left. NaN is
    chosen last.
    """
    pre = pre.detach().contiguous()
    rows, d_sae = pre.shape
    indices = torch.empty(rows, k, dtype=torch.int32)
    depth = min(MAX_DEPTH, max(1, d_sae // (GROUPS_PER_K * k)))
    half = pre.dtype == torch.bfloat16
    _over_rows(_top_k, rows, (pre.view(torch.int16) if half else pre).numpy(), k, depth, indices.numpy())
    return pre.gather(1, indices.long()), indices


def above(
    pre: Float[Tensor, "rows d_sae"], threshold: Float[Tensor, " d_sae"], at_most: int | None = None
) -> tuple[Int[Tensor, " bounds"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]] | None:
    """(offsets, features, values) of the entries that are larger than their column's threshold; None if they are more
    than `at_most`."""
    pre, threshold = pre.detach().contiguous(), threshold.detach().contiguous()
    counts = torch.zeros(len(pre) + 1, dtype=torch.int32)
    _over_rows(_count_above, len(pre), pre.numpy(), threshold.numpy(), counts[1:].numpy())
    offsets = counts.cumsum(0)
    found = int(offsets[-1])
    if at_most is not None and found > at_most:
        return None
    offsets, features, values = offsets.int(), torch.empty(found, dtype=torch.int32), pre.new_empty(found)
    arrays = (x.numpy() for x in (pre, threshold, offsets, features, values))
    _over_rows(_fill_above, len(pre), *arrays)
    return offsets, features, values


def dots(
    offsets: Int[Tensor, " bounds"],
    features: Int[Tensor, " pairs"],
    a: Float[Tensor, "rows d"],
    b: Float[Tensor, "d_sae d"],
) -> Float[Tensor, " pairs"]:
    """<a of the pair's row, b of its feature> for each pair."""
    out = torch.empty(len(features), dtype=torch.float32)
    arrays = (x.detach().contiguous().numpy() for x in (offsets, features, a, b, out))
    _over_rows(_dots, len(a), *arrays)
    return out


def by_feature(offsets: Int[Tensor, " bounds"], features: Int[Tensor, " pairs"], d_sae: int) -> ByFeature:
    """The pairs sorted by feature, stable."""
    order, rows = torch.empty_like(features), torch.empty_like(features)
    starts = torch.zeros(d_sae + 1, dtype=torch.int32)
    _by_feature(*(x.contiguous().numpy() for x in (offsets, features, order, rows, starts)))
    return ByFeature(order, rows, starts)


def remove_parallel_(vectors: Float[Tensor, "n d"], directions: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """v_i <- v_i - (v_i · d_i) d_i in `vectors`; the result is the squared norm of each row then."""
    if not vectors.is_contiguous():
        return torch_kernels.remove_parallel_(vectors, directions)
    squares = vectors.new_empty(len(vectors))
    arrays = (x.detach().contiguous().numpy() for x in (vectors, directions, squares))
    _over_rows(_remove_parallel, len(vectors), *arrays)
    return squares


def normalise_(vectors: Float[Tensor, "n d"]) -> None:
    """Rows to norm 1; rows of zeros stay."""
    if not vectors.is_contiguous():
        return torch_kernels.normalise_(vectors)
    _over_rows(_normalise, len(vectors), vectors.detach().numpy())


def _largest_first(v: Any, x: Any, n: int, k: int) -> None:
    """Moves the k largest of v[:n], and what stands beside them in x, to the front (Hoare's quickselect)."""
    low, high, last = np.int64(0), np.int64(n) - 1, np.int64(k) - 1
    while low < high:
        pivot = v[_U((low + high) >> 1)]
        i, j = low, high
        while i <= j:
            while v[_U(i)] > pivot:
                i += 1
            while v[_U(j)] < pivot:
                j -= 1
            if i <= j:
                v[_U(i)], v[_U(j)] = v[_U(j)], v[_U(i)]
                x[_U(i)], x[_U(j)] = x[_U(j)], x[_U(i)]
                i += 1
                j -= 1
        if last <= j:
            high = j
        elif last >= i:
            low = i
        else:
            break


def _top_k_rows(pre: Any, k: int, depth: int, indices: Any, first: int, last: int) -> None:
    lanes, layers = _U(LANES), _U(depth)
    columns = _U(pre.shape[1])
    width = lanes * layers
    blocks = columns // width
    grouped = blocks * width  # the columns after these are groups of their own
    groups = blocks * lanes + (columns - grouped)
    maxima = np.empty(groups, pre.dtype)
    values = np.empty(columns, pre.dtype)
    found = np.empty(columns, np.int32)
    for r in range(_U(first), _U(last)):
        for b in range(blocks):
            for j in range(lanes):
                maxima[b * lanes + j] = pre[r, b * width + j]
            for i in range(_U(1), layers):
                for j in range(lanes):
                    v = pre[r, b * width + i * lanes + j]
                    m = maxima[b * lanes + j]
                    maxima[b * lanes + j] = v if v > m else m
        for c in range(grouped, columns):
            maxima[blocks * lanes + (c - grouped)] = pre[r, c]
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for g in range(groups):
            m = np.float32(maxima[g])
            low = m if m < low else low
            high = m if m > high else high
        for _ in range(BISECTIONS):  # at least k groups reach `low`, always
            middle = (low + high) * np.float32(0.5)
            t = pre.dtype.type(middle)
            reached = np.int32(0)
            for g in range(groups):
                reached += np.int32(maxima[g] >= t)
            if reached >= k:
                low = middle
            else:
                high = middle
        t = pre.dtype.type(low)
        n = _U(0)
        for b in range(blocks):
            for j in range(lanes):
                if maxima[b * lanes + j] >= t:
                    for i in range(layers):
                        c = b * width + i * lanes + j
                        v = pre[r, c]
                        values[n], found[n] = v, np.int32(c)
                        n += _U(v >= t)
        for c in range(grouped, columns):
            v = pre[r, c]
            values[n], found[n] = v, np.int32(c)
            n += _U(v >= t)
        if n < _U(k):  # NaN all over the row: anything will do, the loss is not finite either
            for j in range(_U(k)):
                indices[r, j] = np.int32(j)
        else:
            _select(values, found, n, k)
            for j in range(_U(k)):
                indices[r, j] = found[j]


def _count_above_rows(pre: Any, threshold: Any, counts: Any, first: int, last: int) -> None:
    for r in range(_U(first), _U(last)):
        n = np.int32(0)
        for c in range(_U(pre.shape[1])):
            n += np.int32(pre[r, c] > threshold[c])
        counts[r] = n


def _fill_above_rows(pre: Any, threshold: Any, offsets: Any, features: Any, values: Any, first: int, last: int) -> None:
    for r in range(_U(first), _U(last)):
        n, end = _U(offsets[r]), _U(offsets[r + _U(1)])
        for c in range(_U(pre.shape[1])):
            if n == end:
                break
            v = pre[r, c]
            features[n], values[n] = np.int32(c), v
            n += _U(v > threshold[c])


def _dots_rows(offsets: Any, features: Any, a: Any, b: Any, out: Any, first: int, last: int) -> None:
    """Four pairs at a time: rows of b come from memory in no order, and four streams wait for it together."""
    d = _U(a.shape[1])
    for r in range(_U(first), _U(last)):
        x = a[r]
        p, end = _U(offsets[r]), _U(offsets[r + _U(1)])
        while p + _U(4) <= end:
            y0, y1 = b[_U(features[p])], b[_U(features[p + _U(1)])]
            y2, y3 = b[_U(features[p + _U(2)])], b[_U(features[p + _U(3)])]
            t0, t1, t2, t3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for i in range(d):
                v = x[i]
                t0 += v * y0[i]
                t1 += v * y1[i]
                t2 += v * y2[i]
                t3 += v * y3[i]
            out[p], out[p + _U(1)], out[p + _U(2)], out[p + _U(3)] = t0, t1, t2, t3
            p += _U(4)
        while p < end:
            y = b[_U(features[p])]
            total = np.float32(0)
            for i in range(d):
                total += x[i] * y[i]
            out[p] = total
            p += _U(1)


def _remove_parallel_rows(vectors: Any, directions: Any, squares: Any, first: int, last: int) -> None:
    for r in range(_U(first), _U(last)):
        v, d = vectors[r], directions[r]
        along, square = np.float32(0), np.float32(0)
        for i in range(_U(vectors.shape[1])):
            along += v[i] * d[i]
        for i in range(_U(vectors.shape[1])):
            left = v[i] - along * d[i]
            v[i] = left
            square += left * left
        squares[r] = square


def _normalise_rows(vectors: Any, first: int, last: int) -> None:
    for r in range(_U(first), _U(last)):
        v = vectors[r]
        square = np.float32(0)
        for i in range(_U(vectors.shape[1])):
            square += v[i] * v[i]
        if square > 0:
            norm = np.sqrt(square)
            for i in range(_U(vectors.shape[1])):
                v[i] /= norm


def _by_feature_pairs(offsets: Any, features: Any, order: Any, rows: Any, starts: Any) -> None:
    for p in range(_U(len(features))):
        starts[_U(features[p]) + _U(1)] += 1
    for f in range(_U(len(starts) - 1)):
        starts[f + _U(1)] += starts[f]
    place = starts.copy()
    for r in range(_U(len(offsets) - 1)):
        for p in range(_U(offsets[r]), _U(offsets[r + _U(1)])):
            f = _U(features[p])
            at = _U(place[f])
            order[at], rows[at] = np.int32(p), np.int32(r)
            place[f] += 1


_select = _jit(_largest_first)
_top_k = _jit(_top_k_rows)
_count_above = _jit(_count_above_rows)
_fill_above = _jit(_fill_above_rows)
# Sums of products may be taken in any order, as a matrix product does too; without all three there are no vectors.
_SUMS = {"reassoc", "contract", "nsz"}
_dots = _jit(_dots_rows, fastmath=_SUMS)
_remove_parallel = _jit(_remove_parallel_rows, fastmath=_SUMS)
_normalise = _jit(_normalise_rows, fastmath=_SUMS)
_by_feature = _jit(_by_feature_pairs)
