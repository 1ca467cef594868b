"""The first few of each group, among many ragged groups at once, without a loop.

Used for contexts (the strongest of a feature), reservoirs (the smallest hashes of an interval) and correlations (the
largest of a row). Deterministic: equal ranks go by index, and nothing depends on how a sort treats ties.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64, UInt32, UInt64


def first_of_groups(
    group: Int64[np.ndarray, " n"], rank: UInt32[np.ndarray, " n"], groups: int, count: int
) -> Int64[np.ndarray, " chosen"]:
    """Indices of the `count` elements of smallest rank in each group (all of a smaller group), ordered by group, rank
    and index; of equal ranks the one with the smaller index counts as smaller.

    group: 0 … groups - 1, in any order; groups < 2^32.
    """
    if count == 0 or len(group) == 0:
        return np.empty(0, np.int64)
    key = group.astype(np.uint64) << np.uint64(32) | rank
    ordered = np.sort(key)  # of values, not of indices: three times as fast
    start = np.searchsorted(ordered, np.arange(groups + 1, dtype=np.uint64) << np.uint64(32))
    # The largest rank that is wanted in each group; an empty group asks nothing and has no elements to be compared.
    last = np.minimum(start[:-1] + count, start[1:]) - 1
    candidates = np.flatnonzero(key <= ordered[last[group]])
    candidates = candidates[np.lexsort((candidates, key[candidates]))]
    own = group[candidates]  # sorted
    place = np.arange(len(own)) - np.searchsorted(own, own)
    return candidates[place < count]


def descending(values: Float32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Ranks by falling value (0 and -0 alike): the bits of a float, turned so that they are ordered as numbers."""
    bits = (values + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))


def splitmix64(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """A bijection of the 64-bit numbers whose output looks random: the finaliser of SplitMix64 (Steele, Lea and Flood
    2014, 'Fast splittable pseudorandom number generators'), after one step of its counter."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ragged(start: Int64[np.ndarray, " rows"], counts: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " entries"]:
    """start[0], start[0] + 1, … (counts[0] of them), start[1], …"""
    before = counts.cumsum() - counts
    return np.repeat(start - before, counts) + np.arange(counts.sum())
