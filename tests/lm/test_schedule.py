"""Learning rates and checkpoint steps, against their definitions."""

from __future__ import annotations

import math

import pytest

from sae_tools.config import LMTrainingConfig
from sae_tools.lm.schedule import is_checkpoint_step, learning_rate_factor, total_steps


def test_warm_up_plateau_and_half_a_cosine():
    cfg = LMTrainingConfig(warmup_steps=10, decay_fraction=0.4, final_lr_fraction=0.1)
    factors = [learning_rate_factor(step, 100, cfg) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:60] == [1.0] * 50
    assert factors[79] == pytest.approx((1 + 0.1) / 2)  # half of the decay
    assert factors[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in zip(factors[59:], factors[60:], strict=False))


def test_the_whole_schedule_may_be_one_cosine_and_there_may_be_none():
    cosine = LMTrainingConfig(warmup_steps=0, decay_fraction=1.0, final_lr_fraction=0.0)
    for step in range(50):
        assert learning_rate_factor(step, 50, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi * (step + 1) / 50)))
    constant = LMTrainingConfig(warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate_factor(step, 50, constant) for step in range(50)} == {1.0}


def test_checkpoints_double():
    assert [s for s in range(201) if is_checkpoint_step(s, 200, 12)] == [0, 12, 24, 48, 96, 192, 200]
    assert [s for s in range(4) if is_checkpoint_step(s, 3, 64)] == [0, 3]


def test_steps_cover_the_tokens():
    assert total_steps(LMTrainingConfig(tokens=1000, batch_size=3), 32) == 11
