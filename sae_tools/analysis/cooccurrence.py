"""Which features fire together: Pearson correlations over all features of all dictionaries read on one corpus.

    r_ij = (T S_ij - s_i s_j) / sqrt((T q_i - s_i²) (T q_j - s_j²)),   S_ij = Σ f_i f_j,  s_i = Σ f_i,  q_i = Σ f_i²

over the T kept tokens, zeros included. The sums S come from products of sparse matrices, one for each pair of blocks of
features. Where S_ij = 0 the two never fire together: r is not positive, and the pair does not count. Sums are in
float64, and run over tokens in order whatever the blocks are, so that neither blocks nor threads change the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32
from scipy import sparse
from torch import Tensor

from sae_tools.analysis.firings import Block, Firings
from sae_tools.analysis.selection import descending, first_of_groups

CONSTANT = 1e-11
"""A feature whose variance is below this share of its mean square has none but rounding. (One that is the same on all
but one of 10^9 tokens still has a hundred times as much.)"""
BLOCK_FIRINGS = 2**20
"""Firings of a block: small enough for the saving by symmetry, large enough for the products to be worth a call."""
KEPT_BLOCKS = 32
"""Blocks that stay in memory, at most some 8 MiB each."""
PAIRS = 2**22
"""Pairs of features in one product, unless one feature alone has more."""
NOBODY = np.iinfo(np.int32).max
EXCLUDED = np.float32(-2)
"""Stands for the correlation of a pair that has none; sorts behind all that exist."""


class Best(NamedTuple):
    """For each feature the most correlated ones of a dictionary, best first (of equal ones the lower index)."""

    feature: Int32[Tensor, "d_sae count"]
    """-1: no further feature ever fires together with it."""
    value: Float32[Tensor, "d_sae count"]
    """Pearson correlation; 0 where there is no feature."""


@dataclass(frozen=True)
class Correlations:
    """Of one dictionary's features."""

    own: Best
    """In the same dictionary, the feature itself left out."""
    others: list[Best]
    """In each other dictionary, in their order."""


class Part(NamedTuple):
    """A block of one dictionary's features."""

    dictionary: int
    first: int
    stop: int


@dataclass(frozen=True)
class Moments:
    """Of each feature of a dictionary."""

    total: Float64[np.ndarray, " d_sae"]
    """s"""
    deviation: Float64[np.ndarray, " d_sae"]
    """sqrt(T q - s²), T standard deviations; 0 for a constant feature."""


Candidates = tuple[np.ndarray, np.ndarray]
"""(feature int32, correlation float32), both [features, count], best first; padded with NOBODY and EXCLUDED."""


def correlate(
    dictionaries: list[Firings],
    tokens: int,
    counted: int,
    neighbours: int,
    matches: int,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    limit: int = BLOCK_FIRINGS,
) -> list[Correlations]:
    """The most correlated features of every feature: `neighbours` of its own dictionary, `matches` of each other one.

    tokens: of the corpus, by flat index; counted: the kept ones among them, over which correlations are taken.
    threads: None: as many as torch uses. progress: called with (products done, in all).
    """
    products = Products(dictionaries, tokens, counted, limit)
    sizes = [firings.d_sae for firings in dictionaries]

    def nothing(d_sae: int, count: int) -> Candidates:
        return np.full((d_sae, count), NOBODY, np.int32), np.full((d_sae, count), EXCLUDED)

    best = {
        (a, b): nothing(sizes[a], neighbours if a == b else matches)
        for a in range(len(sizes))
        for b in range(len(sizes))
    }
    pairs = [(left, right) for j, right in enumerate(products.parts) for left in products.parts[: j + 1]]

    def one(pair: tuple[Part, Part]) -> list[tuple[Part, Part, Candidates]]:
        left, right = pair
        return list(products.best(left, right, neighbours if left.dictionary == right.dictionary else matches))

    progress(0, len(pairs))
    pool = ThreadPoolExecutor(threads or torch.get_num_threads())
    try:
        for done, found in enumerate(pool.map(one, pairs), 1):
            for part, among, candidates in found:
                into = best[part.dictionary, among.dictionary]
                merge(into, slice(part.first, part.stop), candidates)
            progress(done, len(pairs))
    finally:  # also when progress, or Ctrl-C, ends it
        pool.shutdown(cancel_futures=True)
    return [
        Correlations(finish(best[a, a]), [finish(best[a, b]) for b in range(len(sizes)) if b != a])
        for a in range(len(sizes))
    ]


class Products:
    """The sums S for any two blocks of features, and what is best in them. May be used by several threads."""

    def __init__(self, dictionaries: list[Firings], tokens: int, counted: int, limit: int):
        self.dictionaries, self.tokens, self.counted = dictionaries, tokens, counted
        self.parts = [Part(d, *cut) for d, firings in enumerate(dictionaries) for cut in firings.cuts(limit)]
        self.block = functools.lru_cache(KEPT_BLOCKS)(self._block)
        self.columns = functools.lru_cache(4)(self._columns)
        self.moments = [self._moments(d) for d in range(len(dictionaries))]

    def _block(self, part: Part) -> Block:
        return self.dictionaries[part.dictionary].block(part.first, part.stop)

    def _columns(self, part: Part) -> sparse.csr_array:
        """[tokens, features] in float64, by token."""
        block = self.block(part)
        value = block.value.astype(np.float64)
        shape = self.tokens, part.stop - part.first
        return sparse.csc_array((value, block.token, block.start), shape=shape).tocsr()

    def _moments(self, dictionary: int) -> Moments:
        d_sae = self.dictionaries[dictionary].d_sae
        total, square = np.zeros(d_sae), np.zeros(d_sae)
        for part in self.parts:
            if part.dictionary != dictionary:
                continue
            block = self.block(part)
            firing = np.flatnonzero(block.counts)
            if len(firing):
                value, begins = block.value.astype(np.float64), block.start[firing]
                total[part.first + firing] = np.add.reduceat(value, begins)
                square[part.first + firing] = np.add.reduceat(value * value, begins)
        variance = self.counted * square - total * total
        variance[variance <= CONSTANT * self.counted * square] = 0
        return Moments(total, np.sqrt(variance))

    def best(self, left: Part, right: Part, count: int) -> Iterator[tuple[Part, Part, Candidates]]:
        """(features, among which, their best candidates) for both directions of a pair of blocks."""
        block, columns = self.block(left), self.columns(right)
        sub = 0
        while sub < left.stop - left.first:
            stop = self._fitting(block, columns, right.stop - right.first, sub)
            rows = Part(left.dictionary, left.first + sub, left.first + stop)
            entries = slice(block.start[sub], block.start[stop])
            start = block.start[sub : stop + 1] - block.start[sub]
            value, token = block.value[entries].astype(np.float64), block.token[entries]
            chosen = sparse.csr_array((value, token, start), shape=(stop - sub, self.tokens))
            sums = cast(sparse.csr_array, chosen @ columns)
            # Each conversion is a counting sort, after which indices rise within their column or row.
            by_column = self._correlation(sums.tocsc(), rows, right)
            by_row = by_column.tocsr()
            yield rows, right, candidates(by_row.indptr, by_row.indices + right.first, by_row.data, count)
            if left != right:
                indices = by_column.indices + rows.first
                yield right, rows, candidates(by_column.indptr, indices, by_column.data, count)
            sub = stop

    def _fitting(self, block: Block, columns: sparse.csr_array, widest: int, first: int) -> int:
        """Where to stop so that the product of the features from `first` has at most PAIRS entries."""
        if (len(block.start) - 1 - first) * widest <= PAIRS:
            return len(block.start) - 1
        partners = np.diff(columns.indptr)[block.token[block.start[first] :]]
        most = np.concatenate([[0], partners.cumsum()])[block.start[first:] - block.start[first]]
        per_row = np.minimum(np.diff(most), widest)
        return first + max(1, int(np.searchsorted(per_row.cumsum(), PAIRS, side="right")))

    def _correlation(self, sums: sparse.csc_array, rows: Part, columns: Part) -> sparse.csc_array:
        """The sums S as correlations, float32; EXCLUDED for a feature with itself and for constant ones."""
        left, right = self.moments[rows.dictionary], self.moments[columns.dictionary]
        row = sums.indices + rows.first
        column = np.repeat(np.arange(columns.first, columns.stop), np.diff(sums.indptr))
        scale = left.deviation[row] * right.deviation[column]
        excluded = scale == 0
        if rows.dictionary == columns.dictionary:
            excluded |= row == column
        r = self.counted * sums.data - left.total[row] * right.total[column]
        r = (r / np.where(excluded, 1, scale)).clip(-1, 1)
        r[excluded] = EXCLUDED
        return sparse.csc_array((r.astype(np.float32), sums.indices, sums.indptr), shape=sums.shape)


def candidates(indptr: np.ndarray, other: np.ndarray, value: np.ndarray, count: int) -> Candidates:
    """The best of each row of ragged rows, whose `other` rise."""
    rows = len(indptr) - 1
    row = np.repeat(np.arange(rows), np.diff(indptr))
    chosen = first_of_groups(row, descending(value), rows, count)
    row = row[chosen]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    feature, best = np.full((rows, count), NOBODY, np.int32), np.full((rows, count), EXCLUDED)
    feature[row, place], best[row, place] = other[chosen], value[chosen]
    feature[best == EXCLUDED] = NOBODY
    return feature, best


def merge(best: Candidates, features: slice, found: Candidates) -> None:
    """Takes what is found for some features into the best so far, in place."""
    feature = np.concatenate([best[0][features], found[0]], axis=1)
    value = np.concatenate([best[1][features], found[1]], axis=1)
    order = np.lexsort((feature, -value), axis=1)[:, : best[0].shape[1]]
    best[0][features] = np.take_along_axis(feature, order, 1)
    best[1][features] = np.take_along_axis(value, order, 1)


def finish(best: Candidates) -> Best:
    feature, value = best
    nobody = feature == NOBODY
    return Best(torch.from_numpy(np.where(nobody, -1, feature)), torch.from_numpy(np.where(nobody, 0, value)))
