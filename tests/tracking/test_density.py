from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.runs.density import DensityWindow, Event, merge_windows, read_windows
from sae_tools.tracking.density import DensityCounter

D_SAE, BATCH = 6, 4

steps = st.lists(st.lists(st.integers(0, BATCH), min_size=D_SAE, max_size=D_SAE), min_size=1, max_size=12)


def brute_force(history: list[list[int]], upto: int) -> tuple[list[int], list[int]]:
    """(fires, last_fired) after `upto` steps, the slow way."""
    fires = [sum(step[i] for step in history[:upto]) for i in range(D_SAE)]
    last = [max([(s + 1) * BATCH - 1 for s in range(upto) if history[s][i]], default=-1) for i in range(D_SAE)]
    return fires, last


@given(steps, st.integers(1, 4), st.integers(0, 11))
def test_windows_add_up_to_exact_counts_also_across_a_resume(tmp_path_factory, history, every, stop):
    folder = tmp_path_factory.mktemp("density")
    counter = DensityCounter(D_SAE)
    for step, fired in enumerate(history, 1):
        counter.update(torch.tensor(fired, dtype=torch.int32), BATCH)
        counter.event("resampled", torch.tensor([step % D_SAE]), step * BATCH)
        if step % every == 0 or step == len(history):
            counter.close_window(folder / f"{step:04d}.safetensors", step * BATCH)
        if step == stop:  # killed and resumed here, in the middle of a window or at its end
            state = {name: tensor.clone() for name, tensor in counter.state().items()}
            counter.update(torch.ones(D_SAE, dtype=torch.int32), BATCH)
            counter = DensityCounter(D_SAE)
            counter.load_state(state)
    windows = read_windows(folder)
    total = merge_windows(windows)
    fires, last = brute_force(history, len(history))
    assert total.fires.tolist() == fires and total.last_fired.tolist() == last
    assert total.tokens == len(history) * BATCH == total.end and total.start == 0
    assert [w.start for w in windows[1:]] == [w.end for w in windows[:-1]]
    assert total.events == tuple(Event(s * BATCH, "resampled", (s % D_SAE,)) for s in range(1, len(history) + 1))
    for window in windows:
        assert window.last_fired.tolist() == brute_force(history, window.end // BATCH)[1]


@given(steps, st.integers(1, 12))
def test_dead_means_no_firing_in_the_last_steps(history, window_steps):
    counter = DensityCounter(D_SAE)
    for fired in history:
        counter.update(torch.tensor(fired), BATCH)
    dead = counter.dead(len(history) * BATCH, window_steps * BATCH).tolist()
    if len(history) < window_steps:
        assert dead == [False] * D_SAE
    else:
        assert dead == [not any(step[i] for step in history[-window_steps:]) for i in range(D_SAE)]


def test_a_step_that_was_not_taken_counts_nothing():
    counter = DensityCounter(2)
    counter.update(torch.tensor([1, 0]), 4)
    counter.update(torch.tensor([3, 3]) * 0, torch.tensor(4.0) * 0)
    window = counter.window(4)
    assert (window.tokens, window.fires.tolist(), window.last_fired.tolist()) == (4, [1, 0], [3, -1])


def test_state_of_another_size_is_refused_and_survives_dots_in_kinds():
    counter = DensityCounter(2)
    for i in range(11):
        counter.event(f"a.b{i}", torch.tensor([1, 0]), i)
    other = DensityCounter(2)
    other.load_state(counter.state())
    assert [(kind, tokens) for kind, tokens, _ in other.events] == [(f"a.b{i}", i) for i in range(11)]
    with pytest.raises(RuntimeError, match="fires has shape"):
        DensityCounter(3).load_state(counter.state())


def test_closing_a_window_keeps_what_the_file_does_not_own(tmp_path):
    counter = DensityCounter(2)
    counter.update(torch.tensor([1, 2]), 4)
    counter.close_window(tmp_path / "0000.safetensors", 4)
    counter.update(torch.tensor([0, 1]), 4)
    window = counter.window(8)
    assert (window.start, window.tokens, window.end) == (4, 4, 8)
    assert window.fires.tolist() == [0, 1] and window.last_fired.tolist() == [3, 7]
    assert DensityWindow.load(tmp_path / "0000.safetensors").fires.tolist() == [1, 2]
