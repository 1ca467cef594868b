from hypothesis import given
from hypothesis import strategies as st

from sae_tools.config import ReLUConfig, TrainingConfig
from sae_tools.training.schedule import evenly_spaced, learning_rate_factor, total_steps


def test_tokens_are_rounded_up_to_whole_steps():
    assert total_steps(TrainingConfig(tokens=1000, batch_size=300)) == 4
    assert total_steps(TrainingConfig(tokens=900, batch_size=300)) == 3


def test_learning_rate_rises_stays_and_falls():
    cfg = TrainingConfig(tokens=100, batch_size=1, warmup_steps=10, decay_fraction=0.2)
    factors = [learning_rate_factor(step, 100, cfg) for step in range(100)]
    assert factors[0] == 1 / 11
    assert factors[10:80] == [1.0] * 70
    assert all(a > b for a, b in zip(factors[80:], factors[81:], strict=False))
    assert 0 < factors[-1] < 0.06


def test_without_warmup_and_decay_the_rate_is_constant():
    cfg = TrainingConfig(tokens=10, batch_size=1, warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate_factor(step, 10, cfg) for step in range(10)} == {1.0}


def test_l1_warms_up_linearly():
    warmed = ReLUConfig(l1=0.5, l1_warmup_steps=4)
    assert [warmed.coefficient(step) for step in range(6)] == [0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert ReLUConfig(l1=0.5).coefficient(0) == 0.5


@given(count=st.integers(1, 50), steps=st.integers(1, 500))
def test_even_parts_end_with_the_run(count: int, steps: int):
    marks = evenly_spaced(count, steps)
    assert marks[-1] == steps and len(marks) == min(count, steps)
    gaps = [b - a for a, b in zip([0, *marks], marks, strict=False)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
