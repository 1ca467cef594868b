"""What is trained: every run of the comparison, by architecture, side, learning rate, setting and seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SIDES = ("sae_tools", "saelens")
LEARNING_RATES = (1.5e-3, 3e-3, 6e-3)
SEEDS = (0, 1, 2)
TARGETS = (16, 32, 64)
"""Features per row at which reconstructions are compared."""
CHOSEN = ("topk", "batchtopk", "matryoshka")
"""Architectures whose number of features per row is a setting, `k`; of the others a penalty's coefficient is."""
PENALISED = ("relu", "gated", "jumprelu")
COEFFICIENTS = {
    "relu": (0.6, 1.2, 2.4),
    "gated": (0.5, 1.0, 2.5),
    "jumprelu": (0.12, 0.3, 0.9),
}
"""Chosen so that L0 spans 16 to 64 on both sides, whatever the learning rate, but for ReLU at the largest one (48)."""


class Task(NamedTuple):
    architecture: str
    side: str
    lr: float
    setting: float
    """k, or the penalty's coefficient."""
    seed: int

    @property
    def key(self) -> str:
        return "/".join(f"{part:g}" if isinstance(part, float) else str(part) for part in self)


def settings(architecture: str) -> tuple[float, ...]:
    return tuple(float(k) for k in TARGETS) if architecture in CHOSEN else COEFFICIENTS[architecture]


def to_choose_a_rate(architecture: str, side: str) -> Iterator[Task]:
    """Every learning rate and setting at the first seed."""
    for lr in LEARNING_RATES:
        for setting in settings(architecture):
            yield Task(architecture, side, lr, setting, SEEDS[0])


def at_the_best_rates(architecture: str, side: str, rates: dict[int, float]) -> Iterator[Task]:
    """What the figures at each L0 are read off: the setting that is that L0, or all where coefficients are settings.

    rates: the best learning rate at each L0.
    """
    for target, lr in rates.items():
        for seed in SEEDS:
            for setting in (float(target),) if architecture in CHOSEN else settings(architecture):
                yield Task(architecture, side, lr, setting, seed)
