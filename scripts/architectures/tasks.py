"""What is trained: every run of the comparison, by architecture, side, learning rate, setting and seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

OURS = "sae_tools"
PEERS = {"transcoder": "sparsify", "skip-transcoder": "sparsify"}
"""Whom an architecture is compared with: SAELens where it trains it. It has classes of transcoders, and no training."""
LEARNING_RATES = (1.5e-3, 3e-3, 6e-3)
TARGETS = (16, 32, 64)
"""Features per row at which reconstructions are compared."""
TWO_SITES = ("transcoder", "skip-transcoder")
"""TopK dictionaries that read the MLP's input and predict its output."""
CHOSEN = ("topk", "batchtopk", "matryoshka", *TWO_SITES)
"""Architectures whose number of features per row is a setting, `k`; of the others a penalty's coefficient is."""
PENALISED = ("relu", "gated", "jumprelu")
COEFFICIENTS = {
    "relu": (0.6, 1.2, 2.4),
    "gated": (0.5, 1.0, 2.5),
    "jumprelu": (0.12, 0.3, 0.9),
}
"""Chosen so that L0 spans 16 to 64 on both sides, whatever the learning rate, but for ReLU at the largest one (48)."""


class Stage(NamedTuple):
    """Seeds and settings at which architectures are compared, and where."""

    name: str
    architectures: tuple[str, ...]
    seeds: tuple[int, ...]
    coefficients: dict[str, tuple[float, ...]]
    targets: tuple[int, ...] = TARGETS
    chooses: bool = False
    """Whether learning rates are chosen anew at these coefficients; else they are the first stage's."""


STAGES = (
    Stage("first", (*CHOSEN, *PENALISED), (0, 1, 2), COEFFICIENTS),
    Stage(  # of what three seeds left undecided; ReLU's L0 now spans 64
        "second", ("relu", "jumprelu"), tuple(range(3, 11)), {**COEFFICIENTS, "relu": (0.35, *COEFFICIENTS["relu"])}
    ),
    Stage(  # of what eight more left undecided, read off between nearer runs
        "third", ("jumprelu",), tuple(range(11, 19)), {"jumprelu": (0.2, 0.25)}, (64,)
    ),
    Stage(  # what the third showed of lines between distant runs, applied to the one ratio that they may have made
        "fourth", ("gated",), tuple(range(11, 16)), {"gated": (0.5, 0.65, 0.8, 1.0, 1.5, 2.5)}, chooses=True
    ),
)


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


def sides(architecture: str) -> tuple[str, str]:
    """Ours, and the library it is compared with."""
    return OURS, PEERS.get(architecture, "saelens")


def to_choose_a_rate(architecture: str, side: str, stage: Stage) -> Iterator[Task]:
    """Every learning rate and setting at seed 0."""
    stage = stage if stage.chooses else STAGES[0]
    for lr in LEARNING_RATES:
        for setting in TARGETS if architecture in CHOSEN else stage.coefficients[architecture]:
            yield Task(architecture, side, lr, float(setting), 0)


def at_the_best_rates(architecture: str, side: str, rates: dict[int, float], stage: Stage) -> Iterator[Task]:
    """What the figures at each L0 are read off: the setting that is that L0, or all where coefficients are settings.

    rates: the best learning rate at each L0.
    """
    for target in stage.targets:
        for seed in stage.seeds:
            for setting in (float(target),) if architecture in CHOSEN else stage.coefficients[architecture]:
                yield Task(architecture, side, rates[target], setting, seed)
