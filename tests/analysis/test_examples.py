"""Examples against plain loops over dense activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.analysis.examples import Examples, examples_of, measure_examples
from sae_tools.config_report import ReportConfig
from tests.analysis.made_up import dense_activations, write_shards

LENGTH = 12
CFG = ReportConfig(top=4, intervals=5, per_interval=2, before=4, after=3)


def level(value: float, maximum: float, count: int) -> int:
    """By comparison with the intervals' ends."""
    return next(j for j in range(1, count + 1) if value * count <= j * maximum or j == count)


def checked_by_loops(examples: Examples, dense: np.ndarray, cfg: ReportConfig, length: int = LENGTH) -> None:
    """Everything but which tokens of an interval were drawn, of which it is checked how many they are."""
    for feature in range(dense.shape[1]):
        column = dense[:, feature]
        active = column[column > 0]
        assert examples.fires[feature] == len(active)
        assert examples.maximum[feature] == column.max(initial=0)
        mean = np.float32(active.astype(np.float64).sum() / len(active)) if len(active) else 0
        assert math.isclose(examples.mean_active[feature], mean, rel_tol=1e-6)
        histogram = [0] * 44
        for value in active.tolist():
            histogram[level(value, float(column.max()), 44) - 1] += 1
        assert examples.histogram[feature].tolist() == histogram

        begin, end = examples.example_start[feature : feature + 2].tolist()
        own = [
            (examples.example_group[e].item(), examples.example_token[e].item(), examples.example_value[e].item())
            for e in range(begin, end)
        ]
        peaks = []  # of every context in which it fires
        for context in range(len(column) // length):
            tokens = range(context * length, (context + 1) * length)
            peak = max(tokens, key=lambda t: (column[t], -t))
            if column[peak] > 0:
                peaks.append((-float(column[peak]), peak))
        top = [(0, t, -negative) for negative, t in sorted(peaks)[: cfg.top]]
        assert [e for e in own if e[0] == 0] == top
        for j in range(cfg.intervals, 0, -1):
            inside = [
                t for t in range(len(column)) if column[t] > 0 and level(column[t], column.max(), cfg.intervals) == j
            ]
            drawn = [(t, value) for group, t, value in own if group == j]
            assert len(drawn) == min(cfg.per_interval, len(inside))
            assert {t for t, _ in drawn} <= set(inside) and len({t for t, _ in drawn}) == len(drawn)
            assert drawn == sorted(drawn, key=lambda e: (-e[1], e[0]))
            assert all(column[t] == np.float32(value) for t, value in drawn)
        groups = [group for group, _, _ in own]
        assert groups == sorted(groups, key=lambda g: (g != 0, -g))

        for e in range(begin, end):
            token = examples.example_token[e].item()
            context = token // length * length
            first, stop = max(context, token - cfg.before), min(context + length, token + cfg.after + 1)
            expected = [(t - first, float(column[t])) for t in range(first, stop) if column[t] > 0]
            entries = slice(*examples.window_start[e : e + 2].tolist())
            found = list(zip(examples.window_offset[entries].tolist(), examples.window_value[entries].tolist()))  # noqa: B905
            assert found == expected
            lead = float(column[first - 1]) if first > context else 0
            assert examples.lead_value[e] == lead


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "cfg",
    [
        CFG,
        ReportConfig(),  # windows longer than a context
        ReportConfig(top=1, intervals=1, per_interval=1, before=0, after=0),
        ReportConfig(top=100, intervals=60, per_interval=0, before=255, after=0),
    ],
)
def test_equal_to_plain_loops(tmp_path, seed: int, cfg: ReportConfig):
    dense = dense_activations(seed=seed)
    checked_by_loops(measure_examples(write_shards(tmp_path, dense, LENGTH, [2, 3]), LENGTH, cfg), dense, cfg)


@given(
    cuts=st.lists(st.integers(1, 6), unique=True).map(sorted),
    limit=st.integers(1, 400),
    seed=st.integers(0, 2),
)
def test_neither_shards_nor_blocks_change_anything(tmp_path_factory, cuts, limit, seed):
    dense = dense_activations(seed=seed)
    whole = measure_examples(write_shards(tmp_path_factory.mktemp("a"), dense, LENGTH, []), LENGTH, CFG)
    parts = measure_examples(write_shards(tmp_path_factory.mktemp("b"), dense, LENGTH, cuts), LENGTH, CFG, limit=limit)
    for name, tensor in whole.tensors().items():
        assert tensor.dtype == parts.tensors()[name].dtype
        assert tensor.equal(parts.tensors()[name]), name


def test_a_dead_dictionary(tmp_path):
    dense = np.zeros((24, 3), np.float32)
    examples = measure_examples(write_shards(tmp_path, dense, LENGTH, [1]), LENGTH, CFG)
    assert examples.fires.tolist() == [0, 0, 0] and examples.example_start.tolist() == [0, 0, 0, 0]
    assert examples.histogram.shape == (3, 44) and examples.window_start.tolist() == [0]
    checked_by_loops(examples, dense, CFG)


def test_every_token_of_an_interval_is_as_likely_to_be_drawn(tmp_path):
    """One feature of equal activations: 2 of its 40 tokens are drawn, over 2,000 seeds each about 100 times (binomial,
    standard deviation 9.7)."""
    dense = np.ones((40, 1), np.float32)
    block = next(write_shards(tmp_path, dense, 10, []).blocks())
    drawn = np.zeros(40)
    for seed in range(2000):
        examples = examples_of(block, 10, ReportConfig(seed=seed, top=1, per_interval=2))
        tokens = examples.example_token[examples.example_group == 11]
        assert len(tokens) == 2
        drawn[tokens] += 1
    assert drawn.sum() == 4000 and np.abs(drawn - 100).max() < 4.5 * 9.7
    assert 0.5 < drawn.std() / 9.7 < 1.5


def test_features_draw_independently(tmp_path):
    block = next(write_shards(tmp_path, np.ones((500, 40), np.float32), 10, []).blocks())
    examples = examples_of(block, 10, CFG)
    tokens = examples.example_token[examples.example_group == CFG.intervals]
    assert len(set(tokens.tolist())) > 65  # of 80


def test_features_and_ranks(tmp_path):
    dense = dense_activations()
    examples = measure_examples(write_shards(tmp_path, dense, LENGTH, []), LENGTH, CFG)
    counts = examples.example_start.diff().tolist()
    assert examples.feature().tolist() == [i for i, n in enumerate(counts) for _ in range(n)]
    assert examples.rank().tolist() == [j for n in counts for j in range(n)]
    windows = examples.windows(LENGTH, CFG.before, CFG.after)
    assert (windows.context * LENGTH + windows.peak).equal(examples.example_token.long())
    assert ((windows.peak - windows.first) <= CFG.before).all() and (windows.stop <= LENGTH).all()
    assert torch.all(examples.window_offset <= CFG.before + CFG.after)
