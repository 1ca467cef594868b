from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.analysis.selection import descending, first_of_groups, ragged, splitmix64

FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3) | st.integers(2**32 - 3, 2**32 - 1))), st.integers(0, 4))
def test_the_first_of_each_group_are_those_of_a_plain_sort(elements, count):
    group = np.array([g for g, _ in elements], np.int64)
    rank = np.array([r for _, r in elements], np.uint32)
    expected = []
    for g in range(6):
        own = [(r, i) for i, (other, r) in enumerate(elements) if other == g]
        expected += [i for _, i in sorted(own)[:count]]
    assert first_of_groups(group, rank, 6, count).tolist() == expected


@given(st.lists(FLOATS, min_size=1))
def test_descending_ranks_order_floats_by_falling_value(values):
    x = np.array(values, np.float32)
    rank = descending(x)
    for i in range(len(x)):
        assert ((rank[i] < rank) == (x[i] > x)).all()
        assert ((rank[i] == rank) == (x[i] == x)).all()


def test_splitmix64_gives_the_published_sequence():
    """The generator seeded with 0, whose state grows by the golden gamma: its first outputs (the reference values of
    Vigna's splitmix64.c)."""
    gamma = 0x9E3779B97F4A7C15
    state = np.array([(i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert [hex(int(x)) for x in splitmix64(state)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_ragged():
    assert ragged(np.array([5, 2, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ragged(np.array([], np.int64), np.array([], np.int64)).tolist() == []
