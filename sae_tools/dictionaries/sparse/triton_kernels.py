"""The kernels on CUDA, in Triton: names, arguments and results of `torch_kernels.py`.

Selection is in `triton_select.py`.

Sums are in float32 whatever the inputs are, and in a fixed order: no atomic additions, so the same input gives the same
bits. Nothing waits for the device; sizes of results and grids follow from shapes alone. float32 or bfloat16, any d.
Vectors may have any stride between rows; what has its elements apart is copied.

What is read and written, with n pairs:

- `dots`: n · d of `b`, each row of `a` once for every `DOT_PAIRS` pairs (from the cache); writes n numbers.
- `sum_by_row`, `sum_by_feature`: n · d of the vectors, and weight and place of each pair once per block of columns;
  write their result once.

The bound is therefore n · d · itemsize bytes. The same vectors are read again and again, so the L2 cache serves much of
it where they fit: the sums go through all rows (features) with one block of columns before the next, so that what is in
use of 32,768 vectors is 32 MiB at a time.

`sum_by_feature` has as much work for a feature as the feature has pairs, and one may fire on every row. Pairs, which
are sorted by feature, are cut at multiples of `CHUNK`. A first kernel sums each chunk that belongs to one feature
altogether, a second sums each feature's chunks and the fewer than 2 · `CHUNK` pairs besides.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_tools.dictionaries.sparse.torch_kernels import ByFeature, normalise_, remove_parallel_
from sae_tools.dictionaries.sparse.triton_select import cdiv, largest, largest_entries, launch, power_of_2, top_k

__all__ = [
    "by_feature",
    "dots",
    "largest",
    "largest_entries",
    "normalise_",
    "remove_parallel_",
    "sum_by_feature",
    "sum_by_row",
    "top_k",
]

BLOCK_BYTES = (1024, 512)
"""Columns that one program sums, in bytes of the vectors."""
THREAD_BYTES = 16
"""What a thread reads of a vector: with as many threads as that takes, no sum goes through another thread."""
PAIRS = 8
"""Vectors that a program has under way at a time."""
DOT_PAIRS = 16
CHUNK = 128


# `no_type_check` keeps jaxtyping's import hook off kernels: Triton compiles them from their source.


@triton.jit
@no_type_check
def _dots(offsets, features, a, b, out, a_stride, b_stride, d, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    for first in range(start, end, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        live = pair < end
        feature = tl.load(features + pair, mask=live, other=0).to(tl.int64)
        products = tl.zeros([PAIRS, WIDTH], tl.float32)
        for left in range(0, d, WIDTH):
            column = left + tl.arange(0, WIDTH)
            inside = column < d
            x = tl.load(a + row * a_stride + column, mask=inside, other=0.0).to(tl.float32)
            where = feature[:, None] * b_stride + column[None, :]
            y = tl.load(b + where, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
            products += x[None, :] * y
        tl.store(out + pair, tl.sum(products, 1), mask=live)


@triton.jit
@no_type_check
def _add_pairs(
    total, start, end, order, ids, weights, vectors, stride, column, inside, ORDERED: tl.constexpr, PAIRS: tl.constexpr
):
    """total + the weighted vectors of the pairs from start to end, in columns `column`."""
    for first in range(start, end, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        live = pair < end
        vector = tl.load(ids + pair, mask=live, other=0).to(tl.int64)
        place = pair
        if ORDERED:
            place = tl.load(order + pair, mask=live, other=0)
        weight = tl.load(weights + place, mask=live, other=0.0).to(tl.float32)
        where = vector[:, None] * stride + column[None, :]
        found = tl.load(vectors + where, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += tl.sum(weight[:, None] * found, 0)
    return total


@triton.jit
@no_type_check
def _sum_by_row(offsets, features, weights, vectors, out, rows, stride, d, PAIRS: tl.constexpr, WIDTH: tl.constexpr):
    program = tl.program_id(0)
    row = (program % rows).to(tl.int64)
    column = (program // rows) * WIDTH + tl.arange(0, WIDTH)
    inside = column < d
    total = _add_pairs(
        tl.zeros([WIDTH], tl.float32), tl.load(offsets + row), tl.load(offsets + row + 1), features, features, weights,
        vectors, stride, column, inside, False, PAIRS,
    )  # fmt: skip
    tl.store(out + row * d + column, total, mask=inside)


@triton.jit
@no_type_check
def _sum_chunks(
    order, ids, starts, features, weights, vectors, sums, chunks, stride, d,
    CHUNK: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """features: that of each chunk's first pair. Chunks with pairs of several features are left alone."""
    program = tl.program_id(0)
    chunk = program % chunks
    start = chunk * CHUNK
    end = start + CHUNK
    if tl.load(starts + tl.load(features + chunk) + 1) >= end:
        column = (program // chunks) * WIDTH + tl.arange(0, WIDTH)
        inside = column < d
        total = _add_pairs(
            tl.zeros([WIDTH], tl.float32), start, end, order, ids, weights, vectors, stride, column, inside, True, PAIRS
        )
        tl.store(sums + chunk.to(tl.int64) * d + column, total, mask=inside)


@triton.jit
@no_type_check
def _sum_by_feature(
    order, ids, starts, weights, vectors, sums, out, d_sae, stride, d,
    CHUNK: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    feature = program % d_sae
    column = (program // d_sae) * WIDTH + tl.arange(0, WIDTH)
    inside = column < d
    start = tl.load(starts + feature)
    end = tl.load(starts + feature + 1)
    first = (start + CHUNK - 1) // CHUNK
    last = end // CHUNK
    whole = last > first
    before = tl.where(whole, first * CHUNK, end)
    after = tl.where(whole, last * CHUNK, end)
    total = tl.zeros([WIDTH], tl.float32)
    total = _add_pairs(total, start, before, order, ids, weights, vectors, stride, column, inside, True, PAIRS)
    for chunks in range(first, last, PAIRS):
        chunk = chunks + tl.arange(0, PAIRS)
        where = chunk.to(tl.int64)[:, None] * d + column[None, :]
        total += tl.sum(tl.load(sums + where, mask=(chunk < last)[:, None] & inside[None, :], other=0.0), 0)
    total = _add_pairs(total, after, end, order, ids, weights, vectors, stride, column, inside, True, PAIRS)
    tl.store(out + feature.to(tl.int64) * d + column, total, mask=inside)


def dots(
    offsets: Int[Tensor, " bounds"],
    features: Int[Tensor, " pairs"],
    a: Float[Tensor, "rows d"],
    b: Float[Tensor, "d_sae d"],
) -> Float[Tensor, " pairs"]:
    """<a of the pair's row, b of its feature> for each pair, float32."""
    rows, d = a.shape
    out = torch.empty(len(features), dtype=torch.float32, device=a.device)
    a, b = _rows_whole(a), _rows_whole(b)
    size = {"PAIRS": DOT_PAIRS, "WIDTH": min(256, max(16, power_of_2(d))), "num_warps": 4}
    launch(_dots, rows, offsets.contiguous(), features.contiguous(), a, b, out, a.stride(0), b.stride(0), d, **size)
    return out


def sum_by_row(
    offsets: Int[Tensor, " bounds"],
    features: Int[Tensor, " pairs"],
    weights: Float[Tensor, " pairs"],
    vectors: Float[Tensor, "d_sae d"],
) -> Float[Tensor, "rows d"]:
    """Σ weight · vector of its feature, over the pairs of each row; float32."""
    rows, d = len(offsets) - 1, vectors.shape[1]
    out = torch.empty(rows, d, dtype=torch.float32, device=vectors.device)
    vectors = _rows_whole(vectors)
    blocks, size = _blocks(vectors)
    pairs = offsets.contiguous(), features.contiguous(), weights.contiguous()
    launch(_sum_by_row, rows * blocks, *pairs, vectors, out, rows, vectors.stride(0), d, **size)
    return out


def by_feature(offsets: Int[Tensor, " bounds"], features: Int[Tensor, " pairs"], d_sae: int) -> ByFeature:
    """The pairs sorted by feature, stable; all int32."""
    ordered, order = torch.sort(features, stable=True)
    order = order.int()
    bounds = torch.arange(d_sae + 1, device=features.device, dtype=features.dtype)
    rows = torch.searchsorted(offsets[1:].contiguous(), order, right=True, out_int32=True)
    return ByFeature(order, rows, torch.searchsorted(ordered, bounds, out_int32=True))


def sum_by_feature(
    pairs: ByFeature, weights: Float[Tensor, " pairs"], vectors: Float[Tensor, "rows d"]
) -> Float[Tensor, "d_sae d"]:
    """Σ weight · vector of its row, over the pairs of each feature; weights in the order of the rows. float32."""
    order, rows, starts = pairs
    d_sae, d, chunks = len(starts) - 1, vectors.shape[1], len(rows) // CHUNK
    out = torch.empty(d_sae, d, dtype=torch.float32, device=vectors.device)
    sums = torch.empty(chunks, d, dtype=torch.float32, device=vectors.device)
    firsts = torch.arange(chunks, dtype=starts.dtype, device=starts.device) * CHUNK
    features = torch.searchsorted(starts[1:].contiguous(), firsts, right=True, out_int32=True)
    vectors, weights = _rows_whole(vectors), weights.contiguous()
    blocks, size = _blocks(vectors)
    size["CHUNK"] = CHUNK
    shape = vectors.stride(0), d
    launch(_sum_chunks, chunks * blocks, order, rows, starts, features, weights, vectors, sums, chunks, *shape, **size)
    launch(_sum_by_feature, d_sae * blocks, order, rows, starts, weights, vectors, sums, out, d_sae, *shape, **size)
    return out


def _rows_whole(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The same with the elements of a row side by side: a copy only where they are not."""
    return vectors if vectors.stride(1) == 1 or vectors.shape[1] == 1 else vectors.contiguous()


def _blocks(vectors: Float[Tensor, "n d"]) -> tuple[int, dict[str, int]]:
    """(blocks of columns, what kernels that sum vectors are compiled for)."""
    d, itemsize = vectors.shape[1], vectors.dtype.itemsize
    widths = [size // itemsize for size in BLOCK_BYTES]
    width = max(16, power_of_2(d))
    if width > widths[-1]:
        width = min(widths, key=lambda width: (cdiv(d, width) * width, -width))  # which wastes least of the last block
    warps = max(1, width * itemsize // (32 * THREAD_BYTES))
    return cdiv(d, width), {"PAIRS": PAIRS, "WIDTH": width, "num_warps": warps}
