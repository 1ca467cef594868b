"""Triton kernels that choose the largest pre-activations: k of each row, or a number of them from the whole matrix.

`top_k` cuts each row into groups of 128 bytes and compares their maxima first. The k groups with the largest maxima
hold the k largest entries: an entry of another group is at most the smallest of those k maxima, which are k entries
themselves. So

1. `_group_maxima` reads [rows, d_sae] once and writes one number per group (1/32 of the entries in float32, 1/64 in
   bfloat16);
2. `_choose_groups`, one program per row, reads these, finds the k-th largest by bisection and writes k group numbers;
3. `_choose_entries`, one program per row, reads k groups and writes the k largest of their entries.

The bound is one reading of the pre-activations, rows · d_sae · itemsize bytes at the memory's rate; 2. and 3. add
(1/16 + k · group / d_sae) of it. No buffer of candidates can overflow, whatever the numbers are. Rows of up to
`SMALL_ROW` entries take 3. alone. Where k groups are too many for one program (k > 512 in float32) and the row is too
long for one, `torch.topk` serves.

Numbers are compared as integers in the same order, NaN above all as in `torch.topk`; of equal ones the lower feature is
taken (not where `torch.topk` serves). Nothing here waits for the device, and nothing depends on the order in which
programs run.

`largest_entries` does the same with the whole matrix as one row, its two selections being `torch.topk`'s: one reading
of the pre-activations, and several of the maxima, where `torch.topk` alone reads everything several times.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

GROUP_BYTES = 128
"""What a group takes of a row: a line of the cache, since groups are read from anywhere in the third kernel."""
SMALL_ROW = 4096
"""Entries of a row that one program compares about as fast as it finds groups."""
MAX_TILE = 16384
"""Entries that one program holds in registers. `_chosen` counts in 15 bits."""
MAXIMA_TILE = 4096
"""Entries of a row that a program of the first kernel reads."""
GATHERED = 32
"""Groups that a program of `_gather_groups` copies."""

LOWEST = tl.constexpr(-(2**31))
"""Below the key of any number: stands for entries beyond the end of a row."""
HIGHEST = tl.constexpr(2**31 - 1)


# Kernels take the bits of float32 as int32 and those of bfloat16 as int16. `no_type_check` keeps jaxtyping's import
# hook off them: Triton compiles a kernel from its source and cannot have it wrapped.


@triton.jit
@no_type_check
def _keys(bits, BITS: tl.constexpr):
    """int32 numbers in the order of the floats whose bits these are, NaN highest."""
    if BITS == 32:
        keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, keys)
    else:
        wide = bits.to(tl.int32)
        keys = wide ^ ((wide >> 31) & 0x7FFF)
        return tl.where((wide & 0x7FFF) > 0x7F80, 0x7FFF, keys)


@triton.jit
@no_type_check
def _values(keys, BITS: tl.constexpr):
    """The floats (float32) of `_keys`."""
    if BITS == 32:
        bits = keys ^ ((keys >> 31) & 0x7FFFFFFF)
    else:
        bits = (keys ^ ((keys >> 31) & 0x7FFF)) << 16
    return bits.to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _threshold(keys, low, high, k):
    """A number with at least k keys that are not below it, and fewer than k above it. `low` must have k of the former,
    `high` be no less than the highest key."""
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
        count = tl.sum((keys >= middle).to(tl.int32), 0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count > k, high, middle - 1)
    return low


@triton.jit
@no_type_check
def _chosen(keys, threshold, k):
    """(which k of the keys are the largest, the place of each among the chosen), of equal ones the first."""
    above = keys > threshold
    ties = keys == threshold
    # Two counts in one scan: at most 2^14 ties in the upper half.
    so_far = tl.cumsum(above.to(tl.int32) + (ties.to(tl.int32) << 16), 0)
    ties_so_far = so_far >> 16
    wanted = k - tl.sum(above.to(tl.int32), 0)
    chosen = above | (ties & (ties_so_far <= wanted))
    return chosen, (so_far & 0xFFFF) + tl.minimum(ties_so_far, wanted) - 1


@triton.jit
@no_type_check
def _group_maxima(
    bits, maxima, stride, d_sae, groups, blocks, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    group = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < d_sae
    found = tl.load(bits + row * stride + column, mask=inside, other=0)
    keys = tl.where(inside, _keys(found, BITS), LOWEST)
    tl.store(maxima + row * groups + group, tl.max(keys, 1), mask=group < groups)


@triton.jit
@no_type_check
def _choose_groups(maxima, chosen_groups, thresholds, groups, k, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, TILE)
    inside = group < groups
    found = tl.load(maxima + row * groups + group, mask=inside, other=0).to(tl.int32)
    keys = tl.where(inside, found, LOWEST)
    low = tl.min(tl.where(inside, found, HIGHEST), 0)
    threshold = _threshold(keys, low, tl.max(keys, 0), k)
    chosen, place = _chosen(keys, threshold, k)
    tl.store(chosen_groups + row * k + place, group, mask=chosen)
    tl.store(thresholds + row, threshold)


@triton.jit
@no_type_check
def _choose_entries(
    bits,
    chosen_groups,
    thresholds,
    values,
    indices,
    stride,
    d_sae,
    k,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPED: tl.constexpr,
    TILE: tl.constexpr,
):
    """GROUPED: of the chosen groups; else of the whole row."""
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, TILE)
    if GROUPED:
        slot = entry // GROUP
        group = tl.load(chosen_groups + row * k + slot, mask=slot < k, other=0)
        column = group * GROUP + entry % GROUP
        inside = (slot < k) & (column < d_sae)
    else:
        column = entry
        inside = entry < d_sae
    found = _keys(tl.load(bits + row * stride + column, mask=inside, other=0), BITS)
    keys = tl.where(inside, found, LOWEST)
    if GROUPED:
        low = tl.load(thresholds + row)
    else:
        low = tl.min(tl.where(inside, found, HIGHEST), 0)
    threshold = _threshold(keys, low, tl.max(keys, 0), k)
    chosen, place = _chosen(keys, threshold, k)
    tl.store(values + row * k + place, _values(keys, BITS), mask=chosen)
    tl.store(indices + row * k + place, column, mask=chosen)


@triton.jit
@no_type_check
def _gather_groups(
    bits,
    chosen_groups,
    keys,
    stride,
    d_sae,
    groups,
    count,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Keys of groups that are numbered through the whole matrix; what is beyond the end of a row is `LOWEST`."""
    slot = tl.program_id(0).to(tl.int64) * SLOTS + tl.arange(0, SLOTS)
    group = tl.load(chosen_groups + slot, mask=slot < count, other=0)
    row = group // groups
    column = ((group % groups) * GROUP)[:, None] + tl.arange(0, GROUP)[None, :]
    inside = (slot < count)[:, None] & (column < d_sae)
    found = tl.load(bits + (row * stride)[:, None] + column, mask=inside, other=0)
    place = slot[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(keys + place, tl.where(inside, _keys(found, BITS), LOWEST), mask=(slot < count)[:, None])


def top_k(pre: Float[Tensor, "rows d_sae"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row (values as float32) and their columns (int32, none twice), in the columns' order except
    where `torch.topk` serves. float32 or bfloat16; rows may have any stride.

    Raises ValueError if a row has fewer than k entries.
    """
    rows, d_sae = pre.shape
    if not 0 <= k <= d_sae:
        raise ValueError(f"top_k: a row has {d_sae} entries, and {k} of them are asked for")
    values = torch.empty(rows, k, dtype=torch.float32, device=pre.device)
    indices = torch.empty(rows, k, dtype=torch.int32, device=pre.device)
    if not rows or not k:
        return values, indices
    group = group_size(d_sae, k, pre.dtype.itemsize)
    if group is None:
        found = pre.topk(k, dim=1, sorted=False)
        return found.values.float(), found.indices.int()
    bits, itemsize = _bits(pre), pre.dtype.itemsize
    if group == 0:
        size = {"BITS": 8 * itemsize, "GROUP": 1, "GROUPED": False, **_tile(d_sae)}
        launch(_choose_entries, rows, bits, indices, indices, values, indices, bits.stride(0), d_sae, k, **size)
        return values, indices
    maxima = _maxima(bits, group)
    groups = maxima.shape[1]
    thresholds = torch.empty(rows, dtype=torch.int32, device=pre.device)
    chosen = torch.empty_like(indices)
    launch(_choose_groups, rows, maxima, chosen, thresholds, groups, k, **_tile(groups))
    size = {"BITS": 8 * itemsize, "GROUP": group, "GROUPED": True, **_tile(k * group)}
    launch(_choose_entries, rows, bits, chosen, thresholds, values, indices, bits.stride(0), d_sae, k, **size)
    return values, indices


def group_size(d_sae: int, k: int, itemsize: int) -> int | None:
    """Entries of a group (a power of two); 0: a row is compared whole; None: `torch.topk` has to serve."""
    group = GROUP_BYTES // itemsize
    if k * group > MAX_TILE:
        group = 32
    while cdiv(d_sae, group) > MAX_TILE // 2:
        group *= 2
    if d_sae <= SMALL_ROW or k * group >= d_sae:
        return 0 if d_sae <= MAX_TILE else None
    return group if k * group <= MAX_TILE else None


def largest(pre: Float[Tensor, "rows d_sae"], count: int) -> tuple[Int[Tensor, " rows+1"], Int[Tensor, " count"]]:
    """(offsets, features), int32: exactly the `count` largest entries of the whole matrix, grouped by row and in the
    order of features."""
    rows, d_sae = pre.shape
    _, places = largest_entries(pre, count)
    bounds = torch.arange(rows + 1, device=pre.device) * d_sae
    return torch.searchsorted(places, bounds, out_int32=True), (places % d_sae).int()


def largest_entries(
    pre: Float[Tensor, "rows d_sae"], count: int
) -> tuple[Float[Tensor, " count"], Int[Tensor, " count"]]:
    """(values as float32, row · d_sae + feature as int64) of the `count` largest entries of the whole matrix, in the
    order of places. The extra memory is 128 bytes per entry asked for, twice that in bfloat16, and the maxima.

    Raises ValueError if there are fewer than `count` entries.
    """
    rows, d_sae = pre.shape
    if not 0 <= count <= pre.numel():
        raise ValueError(f"largest: there are {pre.numel()} entries, and {count} of them are asked for")
    group = GROUP_BYTES // pre.dtype.itemsize
    groups = cdiv(d_sae, group)
    if 4 * count > rows * groups:  # groups would spare little
        found = pre.flatten().topk(count, sorted=False)
        places, order = found.indices.sort()
        return found.values[order].float(), places
    bits = _bits(pre)
    chosen = _maxima(bits, group).flatten().topk(count, sorted=False).indices.sort().values
    keys = torch.empty(count * group, dtype=torch.int32, device=pre.device)
    size = {"BITS": 8 * pre.dtype.itemsize, "GROUP": group, "SLOTS": GATHERED, "num_warps": 4}
    launch(_gather_groups, cdiv(count, GATHERED), bits, chosen, keys, bits.stride(0), d_sae, groups, count, **size)
    entries = keys.topk(count, sorted=False).indices.sort().values
    group_of = chosen[entries // group]
    places = group_of // groups * d_sae + group_of % groups * group + entries % group
    return _floats(keys[entries], pre.dtype.itemsize), places


def _floats(keys: Int[Tensor, " count"], itemsize: int) -> Float[Tensor, " count"]:
    """What `_values` does in a kernel."""
    mask = 0x7FFFFFFF if itemsize == 4 else 0x7FFF
    bits = keys ^ ((keys >> 31) & mask)
    return (bits if itemsize == 4 else bits << 16).view(torch.float32)


def _bits(pre: Float[Tensor, "rows d_sae"]) -> Int[Tensor, "rows d_sae"]:
    """The same memory as integers; a copy only if a row's entries are not side by side."""
    if pre.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"the largest of {pre.dtype}: float32 and bfloat16 are what there are kernels for")
    pre = pre.detach()
    if pre.stride(1) != 1 and pre.shape[1] > 1:
        pre = pre.contiguous()
    return pre.view(torch.int16 if pre.dtype == torch.bfloat16 else torch.int32)


def _maxima(bits: Int[Tensor, "rows d_sae"], group: int) -> Int[Tensor, "rows groups"]:
    """The largest key of each group, in as many bits as the entries have."""
    rows, d_sae = bits.shape
    groups = cdiv(d_sae, group)
    maxima = torch.empty(rows, groups, dtype=bits.dtype, device=bits.device)
    block = min(max(1, MAXIMA_TILE // group), power_of_2(groups))
    blocks = cdiv(groups, block)
    size = {"BITS": 8 * bits.dtype.itemsize, "GROUP": group, "BLOCK": block, "num_warps": 4}
    launch(_group_maxima, rows * blocks, bits, maxima, bits.stride(0), d_sae, groups, blocks, **size)
    return maxima


def _tile(entries: int) -> dict[str, int]:
    """16 to 32 entries per thread: more would not stay in registers through the scan."""
    tile = max(32, power_of_2(entries))
    return {"TILE": tile, "num_warps": min(16, max(1, tile // 512))}


def launch(kernel: Any, programs: int, first: Tensor, *arguments: Any, **settings: Any) -> None:
    """Runs `programs` programs of a kernel on the device of its first argument, if they are any."""
    if programs:
        with torch.cuda.device_of(first):
            kernel[(programs,)](first, *arguments, **settings)


def power_of_2(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def cdiv(n: int, by: int) -> int:
    """n / by, rounded up."""
    return -(-n // by)
