"""Where features fire: counts, histograms, top contexts and a fair sample of the rest, from sparse activations.

Top contexts show a feature at its strongest only; the sample from even intervals of (0, maximum] shows what its weak
activations are about (Bricken et al. 2023, 'Towards Monosemanticity', 'Activations and interpretability').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

from sae_tools.analysis.firings import BLOCK_FIRINGS, Block, Firings
from sae_tools.analysis.selection import descending, first_of_groups, ragged, splitmix64
from sae_tools.config_report import ReportConfig
from sae_tools.seeds import derived_seed

BINS = 44
"""Even intervals of (0, maximum] in a feature's histogram."""


class Windows(NamedTuple):
    """Where the examples' windows lie, int64 each; positions are places in the context."""

    context: Int64[Tensor, " examples"]
    first: Int64[Tensor, " examples"]
    """Position of the window's first token."""
    peak: Int64[Tensor, " examples"]
    """Position of the peak."""
    stop: Int64[Tensor, " examples"]
    """Position after the window's last token."""


@dataclass(frozen=True)
class Examples:
    """What a dictionary's features do on the corpus; fields are named as in the file (analysis/feature_files.py).

    Examples are sorted by feature; within a feature group 0 (the top contexts, best first), then the intervals from the
    strongest down, in each the larger value first; equal values by flat index. Values are activations with a decoder
    row of norm 1 in the dictionary's own space.
    """

    fires: Int64[Tensor, " d_sae"]
    """On how many tokens each feature is > 0."""
    maximum: Float32[Tensor, " d_sae"]
    """Largest activation; 0 if it never fires."""
    mean_active: Float32[Tensor, " d_sae"]
    """Mean of the activations > 0; 0 if there are none."""
    histogram: Int32[Tensor, "d_sae 44"]
    """Activations > 0 in even intervals of (0, maximum], each without its lower and with its upper end."""
    example_start: Int64[Tensor, " bounds"]
    """Feature i has the examples from start[i] to start[i + 1]."""
    example_token: Int32[Tensor, " examples"]
    """Flat index of the token at the peak."""
    example_group: UInt8[Tensor, " examples"]
    """0: a top context; j >= 1: drawn from the j-th interval of (0, maximum], of which the last is the strongest."""
    example_value: Float32[Tensor, " examples"]
    """The activation at the peak."""
    window_start: Int64[Tensor, " window_bounds"]
    """Example e has the window entries from start[e] to start[e + 1]."""
    window_offset: UInt8[Tensor, " entries"]
    """Place of the token counted from the window's first."""
    window_value: Float32[Tensor, " entries"]
    """The feature's activation there, > 0."""
    lead_value: Float32[Tensor, " examples"]
    """The feature's activation at the token before the window (it decides the prediction of the window's first token);
    0 where it does not fire there or the window begins the context. Not part of the file."""

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def feature(self) -> Int64[Tensor, " examples"]:
        """The feature of each example."""
        return torch.arange(len(self.fires)).repeat_interleave(self.example_start.diff())

    def rank(self) -> Int64[Tensor, " examples"]:
        """Place of each example among its feature's, 0 first."""
        return torch.arange(len(self.example_token)) - self.example_start[:-1].repeat_interleave(
            self.example_start.diff()
        )

    def windows(self, length: int, before: int, after: int) -> Windows:
        """Where the windows lie in contexts of `length` tokens: `before` tokens, the peak and `after` tokens, cut at
        the context's ends."""
        token = self.example_token.long()
        peak = token % length
        return Windows(token // length, (peak - before).clamp(min=0), peak, (peak + after + 1).clamp(max=length))

    @staticmethod
    def concatenate(parts: list[Examples]) -> Examples:
        """Of consecutive features; every part must have the same kinds of examples."""
        joined = {}
        for field in fields(Examples):
            tensors = [getattr(part, field.name) for part in parts]
            if field.name.endswith("_start"):
                ends = torch.tensor([0] + [int(tensor[-1]) for tensor in tensors]).cumsum(0)
                tensors = [tensor[:-1] + end for tensor, end in zip(tensors, ends, strict=False)] + [ends[-1:]]
            joined[field.name] = torch.cat(tensors)
        return Examples(**joined)


def measure_examples(
    firings: Firings,
    length: int,
    cfg: ReportConfig,
    progress: Callable[[int], None] = lambda features: None,
    limit: int = BLOCK_FIRINGS,
) -> Examples:
    """Examples of every feature, from its firings on a corpus of contexts of `length` tokens.

    limit: firings that are in memory at once. The result does not depend on it.
    """
    parts = []
    for block in firings.blocks(limit):
        parts.append(examples_of(block, length, cfg))
        progress(block.stop)
    return Examples.concatenate(parts)


def examples_of(block: Block, length: int, cfg: ReportConfig) -> Examples:
    """Examples of a block of features."""
    features, feature, counts = block.stop - block.first, block.feature(), block.counts
    firing = counts > 0
    maximum, total = np.zeros(features, np.float32), np.zeros(features)
    if firing.any():  # reduceat reads an empty segment as its neighbour's first element
        maximum[firing] = np.maximum.reduceat(block.value, block.start[:-1][firing])
        total[firing] = np.add.reduceat(block.value, block.start[:-1][firing], dtype=np.float64)
    largest = maximum[feature]
    histogram = np.bincount(feature * BINS + interval(block.value, largest, BINS) - 1, minlength=features * BINS)

    top = top_contexts(block, feature, length, cfg.top)
    drawn, group = reservoirs(block, feature, interval(block.value, largest, cfg.intervals), cfg)
    chosen = np.concatenate([top, drawn])
    group = np.concatenate([np.zeros(len(top), np.int64), group])
    order = np.lexsort((block.token[chosen], -block.value[chosen], (-group) % 256, feature[chosen]))
    chosen, group = chosen[order], group[order]
    entries, offset, per_window, lead = window_entries(block, feature, chosen, length, cfg)
    return Examples(
        fires=torch.from_numpy(counts),
        maximum=torch.from_numpy(maximum),
        mean_active=torch.from_numpy((total / np.maximum(counts, 1)).astype(np.float32)),
        histogram=torch.from_numpy(histogram.reshape(features, BINS).astype(np.int32)),
        example_start=starts(np.bincount(feature[chosen], minlength=features)),
        example_token=torch.from_numpy(block.token[chosen]),
        example_group=torch.from_numpy(group.astype(np.uint8)),
        example_value=torch.from_numpy(block.value[chosen]),
        window_start=starts(per_window),
        window_offset=torch.from_numpy(offset.astype(np.uint8)),
        window_value=torch.from_numpy(block.value[entries]),
        lead_value=torch.from_numpy(lead),
    )


def interval(value: Float32[np.ndarray, " n"], largest: Float32[np.ndarray, " n"], count: int) -> np.ndarray:
    """Which of `count` even intervals of (0, largest] each value is in, 1 the lowest; int64 [n]. Interval j has
    (j - 1) largest / count < value <= j largest / count."""
    return np.clip(np.ceil(value.astype(np.float64) * count / largest), 1, count).astype(np.int64)


def top_contexts(block: Block, feature: Int64[np.ndarray, " firings"], length: int, count: int) -> np.ndarray:
    """Indices of the firings at the peaks of each feature's top contexts: `count` different contexts of largest maximum
    (of equal ones the earlier), in each the first token that has it."""
    if not len(feature):
        return np.empty(0, np.int64)
    context = block.token // length
    begins = np.flatnonzero(np.diff(feature, prepend=-1) | np.diff(context, prepend=-1))  # of a feature in a context
    largest = np.maximum.reduceat(block.value, begins)
    chosen = first_of_groups(feature[begins], descending(largest), block.stop - block.first, count)
    counts = np.diff(begins, append=len(feature))[chosen]
    inside = ragged(begins[chosen], counts)
    owner = np.repeat(np.arange(len(chosen)), counts)
    at_peak = block.value[inside] == largest[chosen][owner]
    inside, owner = inside[at_peak], owner[at_peak]
    return inside[np.diff(owner, prepend=-1) > 0]


def reservoirs(
    block: Block, feature: Int64[np.ndarray, " firings"], level: Int64[np.ndarray, " firings"], cfg: ReportConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the firings drawn, their level): of each feature and level the `per_interval` tokens whose hash is
    smallest. The hash is of seed, feature and token, so that what is drawn depends on no order of reading."""
    group = feature * cfg.intervals + level - 1
    seed = np.uint64(derived_seed(cfg.seed, "contexts of intervals"))
    salt = splitmix64(splitmix64(np.arange(block.first, block.stop, dtype=np.uint64)) ^ seed)
    rank = (splitmix64(salt[feature] ^ block.token.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
    drawn = first_of_groups(group, rank, (block.stop - block.first) * cfg.intervals, cfg.per_interval)
    return drawn, level[drawn]


def window_entries(
    block: Block,
    feature: Int64[np.ndarray, " firings"],
    chosen: Int64[np.ndarray, " examples"],
    length: int,
    cfg: ReportConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(indices of the firings in all examples' windows, their offsets in the window, number per window, activation at
    the token before each window).

    chosen: the firing at each example's peak.
    """
    key = feature << 31 | block.token  # rising: feature, then token < 2^31
    token = block.token[chosen].astype(np.int64)
    context = token // length * length
    first = np.maximum(token - cfg.before, context)
    stop = np.minimum(token + cfg.after + 1, context + length)
    begin = np.searchsorted(key, feature[chosen] << 31 | first)
    counts = np.searchsorted(key, (feature[chosen] << 31) + stop) - begin
    entries = ragged(begin, counts)
    before = np.maximum(begin, 1) - 1  # the firing that comes before the window's
    leads = (begin > 0) & (first > context) & (key[before] == (feature[chosen] << 31) + first - 1)
    lead = np.where(leads, block.value[before], np.float32(0))
    return entries, block.token[entries] - np.repeat(first, counts), counts, lead


def starts(counts: np.ndarray) -> Int64[Tensor, " bounds"]:
    """Where each of some ragged rows begins, and where the last ends."""
    return torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int64))
