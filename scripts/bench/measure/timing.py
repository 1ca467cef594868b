"""Interleaved timing: contenders run in turn, A B C … A B C …, so that a machine's moods meet all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Of the seconds of single runs."""

    low: float
    """Lower quartile."""
    median: float
    high: float
    """Upper quartile."""
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Quartiles by linear interpolation. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high, len(values))


def interleave(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    synchronise: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    settle: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of every run by name: `warmup` rounds that do not count (compilation, first touch of memory), then
    `rounds` in which each runs once.

    synchronise: waits until the device has done what it was given. settle: seconds of rest before each run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warmup + rounds):
        for name, run in work.items():
            synchronise()
            if settle:
                time.sleep(settle)
            start = clock()
            run()
            synchronise()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of numerator / denominator of the same round. Raises ValueError for unequal lengths."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
