"""When a language model's learning rate falls, and when it is written down."""

from __future__ import annotations

import math

from sae_tools.config import LMTrainingConfig


def total_steps(cfg: LMTrainingConfig, context_length: int) -> int:
    return math.ceil(cfg.tokens / (cfg.batch_size * context_length))


def learning_rate_factor(step: int, steps: int, cfg: LMTrainingConfig) -> float:
    """Share of `cfg.lr` in step `step` (0 first) of `steps`: linear warm-up, constant, half a cosine down."""
    warmup = (step + 1) / cfg.warmup_steps if step < cfg.warmup_steps else 1.0
    decay_steps = cfg.decay_fraction * steps
    into = step + 1 - (steps - decay_steps)
    if decay_steps <= 0 or into <= 0:
        return warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(into / decay_steps, 1.0)))
    return warmup * (cfg.final_lr_fraction + (1 - cfg.final_lr_fraction) * cosine)


def is_checkpoint_step(step: int, steps: int, first: int) -> bool:
    """Whether a checkpoint is written after `step` steps: 0, `first`, its doublings, and the end."""
    if step in (0, steps):
        return True
    doublings, rest = divmod(step, first)
    return rest == 0 and doublings & (doublings - 1) == 0
