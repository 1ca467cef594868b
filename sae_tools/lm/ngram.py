"""Interpolated n-gram models with Witten–Bell smoothing: what a language model has to beat to be worth explaining.

With c(h, w) the count of token w after history h, c(h) = Σ_w c(h, w), T(h) the number of different tokens seen after h,
and h' the history without its oldest token (Witten & Bell 1991; Chen & Goodman 1999, eq. 6):

    p(w | h) = (c(h, w) + T(h) p(w | h')) / (c(h) + T(h)),        p(w | h) = p(w | h') where h was never seen,

down to the uniform distribution over the vocabulary. Histories do not reach across the beginning of a context.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64


@dataclass
class Counts:
    """How often each key occurred; keys ascending, int64."""

    keys: Int64[np.ndarray, " n"]
    counts: Int64[np.ndarray, " n"]

    @staticmethod
    def of(keys: Int64[np.ndarray, " any"]) -> Counts:
        return Counts(*np.unique(keys, return_counts=True))

    def __add__(self, other: Counts) -> Counts:
        keys = np.concatenate([self.keys, other.keys])
        counts = np.concatenate([self.counts, other.counts])
        order = np.argsort(keys, kind="stable")  # two sorted runs: merged, not sorted
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
        return Counts(keys[first], np.add.reduceat(counts, first) if len(first) else counts)

    def __getitem__(self, keys: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        """The counts of `keys`, 0 where one never occurred."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)

    def histories(self, vocabulary: int) -> tuple[Counts, Counts]:
        """(c(h), T(h)) of all histories, where a key is history * vocabulary + token."""
        history = self.keys // vocabulary
        if not len(history):
            return self, self
        first = np.flatnonzero(np.concatenate([[True], history[1:] != history[:-1]]))
        different = np.diff(np.concatenate([first, [len(history)]]))
        return Counts(history[first], np.add.reduceat(self.counts, first)), Counts(history[first], different)


class Tally:
    """Counts of a long sequence of keys, added up in pieces: sums of like sizes are merged, as in a binary counter."""

    def __init__(self) -> None:
        self._parts: list[Counts] = []

    def add(self, keys: Int64[np.ndarray, " any"]) -> None:
        self._parts.append(Counts.of(keys))
        while len(self._parts) > 1 and len(self._parts[-2].keys) < 2 * len(self._parts[-1].keys):
            self._parts.append(self._parts.pop() + self._parts.pop())

    def total(self) -> Counts:
        while len(self._parts) > 1:
            self._parts.append(self._parts.pop() + self._parts.pop())
        return self._parts[0] if self._parts else Counts(np.empty(0, np.int64), np.empty(0, np.int64))


class NGrams:
    """Unigram, bigram and trigram model of contexts of tokens."""

    ORDERS = (1, 2, 3)

    def __init__(self, contexts: Iterable[Int64[np.ndarray, "n length"]], vocabulary: int):
        """contexts: batches of training contexts, of any length; vocabulary: number of token ids."""
        if vocabulary**3 >= 2**63:
            raise ValueError(f"a vocabulary of {vocabulary} is too large for trigrams in 64 bits")
        self.vocabulary = vocabulary
        self.tokens = 0
        """Tokens counted (the first of each context is only a history)."""
        tallies = [Tally() for _ in self.ORDERS]
        for tokens in contexts:
            self.tokens += tokens[:, 1:].size
            for order, tally in zip(self.ORDERS, tallies, strict=True):
                tally.add(self._keys(tokens, order).ravel())
        self.counts = [tally.total() for tally in tallies]
        self._histories = [counts.histories(vocabulary) for counts in self.counts]

    def _keys(self, tokens: Int64[np.ndarray, "n length"], order: int) -> Int64[np.ndarray, "n length_minus"]:
        """Keys of the n-grams that end at each position from max(1, order - 1) on."""
        length = tokens.shape[1]
        start = max(1, order - 1)
        keys = np.zeros((len(tokens), max(length - start, 0)), np.int64)
        for back in range(order - 1, -1, -1):
            keys = keys * self.vocabulary + tokens[:, start - back : max(length - back, 0)]
        return keys

    def losses(self, tokens: Int64[np.ndarray, "n length"]) -> list[Float64[np.ndarray, "n length_minus_1"]]:
        """-log p (nats) of tokens[:, 1:] under the unigram, the bigram and the trigram model."""
        p = np.full((len(tokens), tokens.shape[1] - 1), 1 / self.vocabulary)
        out = []
        for order, counts, (totals, different) in zip(self.ORDERS, self.counts, self._histories, strict=True):
            keys = self._keys(tokens, order)
            flat = keys.ravel()
            c, n, t = (
                x.reshape(keys.shape)
                for x in (counts[flat], totals[flat // self.vocabulary], different[flat // self.vocabulary])
            )
            where = slice(p.shape[1] - keys.shape[1], None)  # the trigram has no say at position 1
            p = p.copy()
            p[:, where] = np.where(n > 0, (c + t * p[:, where]) / np.maximum(n + t, 1), p[:, where])
            out.append(-np.log(p))
        return out
