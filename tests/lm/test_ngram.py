"""Witten–Bell n-grams against dictionaries of counts."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.lm.ngram import Counts, NGrams, Tally


def by_hand(rows: list[list[int]], vocabulary: int, order: int, history: tuple[int, ...], token: int) -> float:
    """p(token | history) from the formula, counting anew each time."""
    if order == 0:
        return 1 / vocabulary
    history = history[len(history) - (order - 1) :]
    seen = Counter(
        row[i] for row in rows for i in range(max(1, order - 1), len(row)) if tuple(row[i - order + 1 : i]) == history
    )
    shorter = by_hand(rows, vocabulary, order - 1, history[1:], token)
    if not seen:
        return shorter
    return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))


rows = st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=6)


@given(train=rows, test=rows, cut=st.integers(1, 5))
def test_equals_the_formula(train: list[list[int]], test: list[list[int]], cut: int):
    batches = [np.array(part, np.int64) for part in (train[:cut], train[cut:]) if part]
    model = NGrams(batches, vocabulary=5)
    for order, losses in zip((1, 2, 3), model.losses(np.array(test, np.int64)), strict=True):
        assert losses.shape == (len(test), 5)
        for r, row in enumerate(test):
            for i in range(1, 6):
                expected = by_hand(train, 5, min(order, i + 1), tuple(row[:i]), row[i])
                assert losses[r, i - 1] == pytest.approx(-math.log(expected), abs=1e-12)


def test_probabilities_sum_to_one():
    random = np.random.default_rng(0)
    model = NGrams([random.integers(0, 6, (20, 30))], vocabulary=6)
    for a in range(6):
        for b in range(6):
            contexts = np.array([[a, b, w] for w in range(6)])
            for losses in model.losses(contexts):
                assert np.exp(-losses[:, 1]).sum() == pytest.approx(1, abs=1e-12)


def test_nothing_counted_is_uniform():
    model = NGrams([], vocabulary=8)
    assert np.allclose(model.losses(np.array([[1, 2, 3, 4]])), math.log(8))


@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=12))
def test_tally_adds_up(parts: list[list[int]]):
    tally = Tally()
    for part in parts:
        tally.add(np.array(part, np.int64))
    total, expected = tally.total(), Counter(key for part in parts for key in part)
    assert dict(zip(total.keys.tolist(), total.counts.tolist(), strict=True)) == dict(expected)
    assert total.keys.tolist() == sorted(expected)
    assert total[np.array([3, 100])].tolist() == [expected[3], 0]


def test_counts_of_histories():
    totals, different = Counts.of(np.array([12, 12, 13, 21])).histories(10)
    assert (totals.keys.tolist(), totals.counts.tolist()) == ([1, 2], [3, 1])
    assert different.counts.tolist() == [2, 1]


def test_a_vocabulary_too_large_for_the_keys_is_refused():
    with pytest.raises(ValueError, match="too large"):
        NGrams([], vocabulary=3_000_000)
