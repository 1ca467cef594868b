"""Learning rate and checkpoints as functions of the step: no state to save, nothing to drift on resume."""

from __future__ import annotations

import math

from sae_tools.config import TrainingConfig


def total_steps(cfg: TrainingConfig) -> int:
    """Steps of the whole run: the tokens asked for, rounded up to whole batches."""
    return math.ceil(cfg.tokens / cfg.batch_size)


def learning_rate_factor(step: int, steps: int, cfg: TrainingConfig) -> float:
    """Factor on the learning rate for the update that follows `step` completed ones.

    Linear warm-up over `warmup_steps`, constant, then linear to (almost) 0 over the last `decay_fraction` of `steps`.
    """
    warmup = min(1.0, (step + 1) / (cfg.warmup_steps + 1))
    decay_steps = round(steps * cfg.decay_fraction)
    decay = min(1.0, (steps - step) / (decay_steps + 1))
    return warmup * decay


def evenly_spaced(count: int, steps: int) -> list[int]:
    """The steps after which the 1st … count-th of `count` even parts of a run are complete; the last is `steps`."""
    count = min(count, steps)
    return sorted({round(steps * (i + 1) / count) for i in range(count)})
