"""The kernels in plain PyTorch: the reference for the others, and the path of devices that have none of their own.

Pairs of a row and an active feature come grouped by row: `offsets` [rows + 1] says where each row's `features` begin.
Any floating dtype, any device. Every kernel has the same name, arguments and result in `numba_kernels.py` (CPU) and
`triton_kernels.py` (CUDA), but for which of equal numbers is chosen, and for NaN: chosen first here and by Triton, last
by numba.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

GATHERED_BYTES = 64 * 2**20
"""Vectors gathered at a time, where a product of pairs has to gather them."""


class ByFeature(NamedTuple):
    """Pairs sorted by feature, those of one feature in the order of their rows."""

    order: Int[Tensor, " pairs"]
    """Position of each pair among the pairs grouped by row."""
    rows: Int[Tensor, " pairs"]
    starts: Int[Tensor, " starts"]
    """Where each feature's pairs begin."""


def top_k(pre: Float[Tensor, "rows d_sae"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row, in any order, and their columns (int32, none twice)."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return values, indices.int()


def largest_entries(
    pre: Float[Tensor, "rows d_sae"], count: int
) -> tuple[Float[Tensor, " count"], Int[Tensor, " count"]]:
    """The `count` largest entries of the whole matrix and their places, row · d_sae + feature (int64), ascending."""
    found = pre.flatten().topk(count, sorted=False)
    places, order = found.indices.sort()
    return found.values[order], places


def above(
    pre: Float[Tensor, "rows d_sae"], threshold: Float[Tensor, " d_sae"], at_most: int | None = None
) -> tuple[Int[Tensor, " bounds"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]] | None:
    """(offsets, features, values) of the entries that are larger than their column's threshold; None if they are more
    than `at_most`. Their number depends on the data: on an accelerator this waits for the device."""
    mask = pre > threshold
    offsets = F.pad(mask.sum(-1).cumsum(0), (1, 0))
    if at_most is not None and int(offsets[-1]) > at_most:
        return None
    return offsets.int(), mask.nonzero()[:, 1].int(), pre[mask]


def remove_parallel_(vectors: Float[Tensor, "n d"], directions: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """v_i <- v_i - (v_i · d_i) d_i in `vectors`; the result is the squared norm of each row then."""
    vectors.addcmul_(directions, torch.linalg.vecdot(vectors, directions).unsqueeze(1), value=-1)
    return torch.linalg.vecdot(vectors, vectors)


def normalise_(vectors: Float[Tensor, "n d"]) -> None:
    """Rows to norm 1; rows of zeros stay."""
    vectors.div_(vectors.norm(dim=-1, keepdim=True).clamp_min_(torch.finfo(vectors.dtype).tiny))


def row_of_pairs(offsets: Int[Tensor, " bounds"], pairs: int) -> Int[Tensor, " pairs"]:
    """The row of each pair, int64."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=pairs)


def dots(
    offsets: Int[Tensor, " bounds"],
    features: Int[Tensor, " pairs"],
    a: Float[Tensor, "rows d"],
    b: Float[Tensor, "d_sae d"],
) -> Float[Tensor, " pairs"]:
    """<a of the pair's row, b of its feature> for each pair."""
    rows = row_of_pairs(offsets, len(features))
    chunk = max(1, GATHERED_BYTES // max(1, a.shape[1] * a.element_size()))
    parts = [torch.linalg.vecdot(a[r], b[f]) for r, f in zip(rows.split(chunk), features.split(chunk), strict=True)]
    return torch.cat(parts) if parts else a.new_zeros(0)


def sum_by_row(
    offsets: Int[Tensor, " bounds"],
    features: Int[Tensor, " pairs"],
    weights: Float[Tensor, " pairs"],
    vectors: Float[Tensor, "d_sae d"],
) -> Float[Tensor, "rows d"]:
    """Σ weight · vector of its feature, over the pairs of each row."""
    return F.embedding_bag(features, vectors, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True)


def by_feature(offsets: Int[Tensor, " bounds"], features: Int[Tensor, " pairs"], d_sae: int) -> ByFeature:
    """The pairs sorted by feature, stable."""
    ordered, order = torch.sort(features, stable=True)
    bounds = torch.arange(d_sae + 1, device=features.device, dtype=features.dtype)
    starts = torch.searchsorted(ordered, bounds).int()
    return ByFeature(order, row_of_pairs(offsets, len(features))[order].int(), starts)


def sum_by_feature(
    pairs: ByFeature, weights: Float[Tensor, " pairs"], vectors: Float[Tensor, "rows d"]
) -> Float[Tensor, "d_sae d"]:
    """Σ weight · vector of its row, over the pairs of each feature; weights in the order of the rows."""
    in_order = weights.index_select(0, pairs.order)
    return F.embedding_bag(
        pairs.rows, vectors, pairs.starts, per_sample_weights=in_order, mode="sum", include_last_offset=True
    )
