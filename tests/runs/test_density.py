from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from sae_tools.errors import UserError
from sae_tools.runs.density import DensityWindow, Event, drop_windows_after, merge_windows, read_windows, window_files
from sae_tools.runs.tensors import save_tensors

D_SAE = 5
events = st.builds(
    Event, st.integers(0, 10**12), st.sampled_from(["resampled", "a.b"]), st.lists(st.integers(0, D_SAE - 1)).map(tuple)
)
windows = st.builds(
    DensityWindow,
    st.lists(st.integers(0, 2**32 - 1), min_size=D_SAE, max_size=D_SAE).map(torch.tensor),
    st.lists(st.integers(-1, 2**40), min_size=D_SAE, max_size=D_SAE).map(torch.tensor),
    st.integers(0, 2**33),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.lists(events, max_size=3).map(tuple),
)


def same(a: DensityWindow, b: DensityWindow) -> bool:
    return (
        a.fires.equal(b.fires)
        and a.last_fired.equal(b.last_fired)
        and (a.tokens, a.start, a.end, a.events) == (b.tokens, b.start, b.end, b.events)
    )


@given(windows)
def test_a_window_comes_back_as_it_was_written(tmp_path_factory, window):
    path = tmp_path_factory.mktemp("window") / "density" / "0000.safetensors"
    window.save(path)
    assert same(DensityWindow.load(path), window)
    assert load_file(path)["fires"].dtype == torch.uint32


@given(windows, windows, windows)
def test_merging_is_associative_and_adds_up(a, b, c):
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert same(left, right) and same(left, merge_windows([a, b, c]))
    assert left.fires.equal(a.fires + b.fires + c.fires) and left.tokens == a.tokens + b.tokens + c.tokens
    assert left.last_fired.equal(torch.stack([a.last_fired, b.last_fired, c.last_fired]).amax(0))
    assert left.events == a.events + b.events + c.events
    assert (left.start, left.end) == (min(a.start, b.start, c.start), max(a.end, b.end, c.end))


@given(windows, windows)
def test_counts_do_not_depend_on_the_order_of_merging(a, b):
    one, other = a.merge(b), b.merge(a)
    assert one.fires.equal(other.fires) and one.last_fired.equal(other.last_fired) and one.tokens == other.tokens
    assert sorted(map(repr, one.events)) == sorted(map(repr, other.events))


def window(start: int, end: int, d_sae: int = 2) -> DensityWindow:
    return DensityWindow(torch.ones(d_sae).long(), torch.full((d_sae,), end - 1), end - start, start, end)


def test_windows_of_a_run_are_read_in_order_and_dropped_past_a_checkpoint(tmp_path):
    assert read_windows(tmp_path / "absent") == []
    for i in (0, 1, 2, 10_000):
        window(10 * i, 10 * i + 10).save(tmp_path / f"{i:04d}.safetensors")
    (tmp_path / "notes.safetensors").write_text("")
    assert [w.start for w in read_windows(tmp_path)] == [0, 10, 20, 100_000]
    drop_windows_after(tmp_path, 20)
    assert [p.name for p in window_files(tmp_path)] == ["0000.safetensors", "0001.safetensors"]
    drop_windows_after(tmp_path, -1)
    assert window_files(tmp_path) == []


def test_what_is_no_window(tmp_path):
    with pytest.raises(ValueError, match="2 and of 3 features"):
        window(0, 1).merge(window(0, 1, 3))
    with pytest.raises(ValueError, match="counts up to"):
        DensityWindow(torch.tensor([2**32]), torch.tensor([0]), 2**32, 0, 2**32).save(tmp_path / "a")
    save_tensors(tmp_path / "a", {"fires": torch.ones(2)}, {})
    with pytest.raises(UserError, match="is no window of a density history"):
        DensityWindow.load(tmp_path / "a")
    with pytest.raises(UserError, match="does not exist"):
        DensityWindow.load(tmp_path / "b")
