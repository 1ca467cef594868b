"""Correlations against numpy's on dense activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_tools.analysis import cooccurrence
from sae_tools.analysis.cooccurrence import Best, correlate
from tests.analysis.made_up import dense_activations, write_shards

LENGTH = 12


def expected_best(a: np.ndarray, b: np.ndarray, kept: np.ndarray, count: int, same: bool) -> list[list[float]]:
    """The correlations that a feature's best must have, by numpy.corrcoef on the kept tokens."""
    a, b = a[kept].astype(np.float64), b[kept].astype(np.float64)
    rows = []
    for i in range(a.shape[1]):
        found = []
        for j in range(b.shape[1]):
            together = (a[:, i] * b[:, j]).sum() > 0
            if together and a[:, i].std() > 0 and b[:, j].std() > 0 and not (same and i == j):
                found.append(np.corrcoef(a[:, i], b[:, j])[0, 1])
        rows.append(sorted(found, reverse=True)[:count])
    return rows


def check(best: Best, a: np.ndarray, b: np.ndarray, kept: np.ndarray, count: int, same: bool) -> None:
    assert best.feature.shape == best.value.shape == (a.shape[1], count)
    for i, expected in enumerate(expected_best(a, b, kept, count, same)):
        value, feature = best.value[i].tolist(), best.feature[i].tolist()
        assert np.allclose(value[: len(expected)], expected, atol=1e-6)
        assert value[len(expected) :] == [0] * (count - len(expected))
        assert feature[len(expected) :] == [-1] * (count - len(expected))
        for j, r in zip(feature[: len(expected)], expected, strict=True):
            assert abs(np.corrcoef(a[kept, i].astype(float), b[kept, j].astype(float))[0, 1] - r) < 1e-6
        assert len(set(feature[: len(expected)])) == len(expected)


def activations() -> list[np.ndarray]:
    first = dense_activations(features=9, seed=1)
    second = dense_activations(features=6, seed=2)
    return [first, second, first[:, [5, 5, 8]] * np.float32(2), np.zeros((len(first), 2), np.float32)]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_equal_to_numpy(tmp_path: Path, count: int):
    dense = activations()
    kept = np.arange(len(dense[0])) % LENGTH > 0
    firings = [write_shards(tmp_path, x, LENGTH, [3], f"d{i}") for i, x in enumerate(dense)]
    results = correlate(firings, len(kept), int(kept.sum()), count, 2, threads=2, limit=60)
    for i, (result, own) in enumerate(zip(results, dense, strict=True)):
        check(result.own, own, own, kept, count, same=True)
        assert len(result.others) == len(dense) - 1
        for best, other in zip(result.others, [x for j, x in enumerate(dense) if j != i], strict=True):
            check(best, own, other, kept, 2, same=False)
    # The third dictionary is of features of the first: feature 5 correlates perfectly with both its copies.
    assert results[0].others[1].feature[5].tolist() == [0, 1] and np.allclose(results[0].others[1].value[5], 1)
    assert results[2].own.feature[0, 0] == 1 and results[2].own.value[0, 0] == 1
    # A constant feature has no correlations, on the kept tokens that is; nor has a dead dictionary.
    assert results[0].own.feature[3].tolist() == [-1] * count and 3 not in results[0].own.feature
    assert all((best.feature == -1).all() and (best.value == 0).all() for best in [results[3].own, *results[3].others])


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 6), unique=True).map(sorted),
    limit=st.integers(1, 500),
    pairs=st.integers(1, 100),
    threads=st.integers(1, 3),
)
def test_neither_shards_nor_blocks_nor_threads_change_anything(tmp_path_factory, cuts, limit, pairs, threads):
    dense = activations()
    folder = tmp_path_factory.mktemp("firings")
    whole = [write_shards(folder / "whole", x, LENGTH, [], f"d{i}") for i, x in enumerate(dense)]
    parts = [write_shards(folder / "parts", x, LENGTH, cuts, f"d{i}") for i, x in enumerate(dense)]
    tokens = len(dense[0])
    expected = correlate(whole, tokens, tokens, 4, 2, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "PAIRS", pairs)
        found = correlate(parts, tokens, tokens, 4, 2, threads=threads, limit=limit)
    for a, b in zip(expected, found, strict=True):
        for one, other in zip([a.own, *a.others], [b.own, *b.others], strict=True):
            assert one.feature.equal(other.feature) and one.value.equal(other.value)


def test_equal_correlations_go_to_the_lower_index(tmp_path: Path):
    column = dense_activations(features=9)[:, 6:7]
    firings = [write_shards(tmp_path, np.repeat(column, 6, 1), LENGTH, [], "same")]
    best = correlate(firings, len(column), len(column), 3, 1, limit=30)[0].own
    assert best.feature.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


def test_an_interrupted_product_ends_the_threads(tmp_path: Path):
    firings = [write_shards(tmp_path, dense_activations(), LENGTH, [])]

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        correlate(firings, 84, 84, 2, 1, threads=2, progress=stop, limit=20)
