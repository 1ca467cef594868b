"""Rows as they are read from a store: every one once in an epoch, mixed over the whole store, resumable anywhere."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sae_tools.activations import store_reader
from sae_tools.activations.mixing import measure_mixing
from sae_tools.activations.store import Store
from sae_tools.activations.store_reader import StoreReader, random_rows
from sae_tools.errors import UserError
from sae_tools.rows import Rows
from tests.activations.fakes import same_rows
from tests.activations.stores import made_up_plan, made_up_store, stored_rows, whole_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """2,000 rows of 300 documents in 20 shards of 5 fills."""
    return made_up_store(tmp_path_factory.mktemp("store") / "a", made_up_plan(rows=2000, fill=400, shard=100))


@settings(max_examples=30)
@given(
    rows=st.integers(1, 120),
    shard=st.integers(1, 50),
    shards_of_fill=st.integers(1, 3),
    window=st.integers(1, 150),
    batch_size=st.integers(1, 60),
    piece_bytes=st.sampled_from([1, 200, 2**20]),
    pieces=st.sampled_from([1, 4, 64]),
)
@example(rows=1, shard=1, shards_of_fill=1, window=1, batch_size=5, piece_bytes=1, pieces=1)
@example(rows=100, shard=30, shards_of_fill=2, window=33, batch_size=7, piece_bytes=200, pieces=1)
def test_every_row_is_served_exactly_once_in_each_epoch(
    rows: int, shard: int, shards_of_fill: int, window: int, batch_size: int, piece_bytes: int, pieces: int
):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_reader, "PIECE_BYTES", piece_bytes)
        patch.setattr(store_reader, "PIECES", pieces)
        plan = made_up_plan(rows=rows, fill=shard * shards_of_fill, shard=shard)
        store = made_up_store(Path(folder) / "a", plan)
        expected = whole_rows(stored_rows(store))
        batches = list(StoreReader(store, rows=window, batch_size=batch_size, seed=0, epochs=1))
        assert all(len(batch) == batch_size for batch in batches[:-1]) and 0 < len(batches[-1]) <= batch_size
        assert whole_rows(Rows.concatenate(batches)) == expected

        endless = StoreReader(store, rows=window, batch_size=batch_size, seed=0)
        assert endless.window_rows <= window
        three = list(islice(endless, -(-3 * rows // batch_size)))
        assert all(len(batch) == batch_size for batch in three)
        served = Rows.concatenate(three)
        for epoch in range(3):
            assert whole_rows(served[epoch * rows : (epoch + 1) * rows]) == expected, epoch


@settings(max_examples=25)
@given(
    window=st.integers(100, 900),
    batch_size=st.integers(1, 120),
    cut=st.integers(0, 25),
)
@example(window=500, batch_size=125, cut=4)  # between two windows
@example(window=2000, batch_size=100, cut=20)  # between two epochs
@example(window=300, batch_size=64, cut=0)
def test_a_resumed_reader_goes_on_bit_for_bit(store: Store, window: int, batch_size: int, cut: int):
    def fresh() -> StoreReader:
        return StoreReader(store, rows=window, batch_size=batch_size, seed=0)

    straight = fresh()
    list(islice(straight, cut))
    state = json.loads(json.dumps(straight.state_dict()))
    assert len(json.dumps(state)) < 300
    resumed = fresh()
    list(islice(resumed, 3))  # whatever it had served before
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest, again = list(islice(straight, 12)), list(islice(resumed, 12))
    assert all(same_rows(a, b) for a, b in zip(rest, again, strict=True))
    assert straight.state_dict() == resumed.state_dict() and straight.epoch == resumed.epoch


@pytest.mark.parametrize(
    ("window", "batch_size", "cut"),
    [(500, 125, 0), (500, 125, 4), (300, 64, 4), (300, 64, 8), (2000, 100, 20), (2000, 300, 6), (100, 250, 1)],
    ids=["first", "window", "within a batch", "again within", "epoch", "epoch within a batch", "many windows"],
)
def test_an_interrupted_batch_was_not_served(store: Store, monkeypatch, window: int, batch_size: int, cut: int):
    def fresh() -> StoreReader:
        return StoreReader(store, rows=window, batch_size=batch_size, seed=0)

    straight, reader, resumed = fresh(), fresh(), fresh()
    for either in (straight, reader):
        list(islice(either, cut))
    before = reader.epoch
    for copies in (2, 0, 1):  # again and again, also on the way back
        interrupt_after(monkeypatch, copies, lambda: next(reader))
        assert reader.state_dict() == straight.state_dict() and reader.epoch == before
    resumed.load_state_dict(json.loads(json.dumps(reader.state_dict())))
    for expected in islice(straight, 30):
        assert same_rows(next(reader), expected) and same_rows(next(resumed), expected)
    assert reader.state_dict() == resumed.state_dict() == straight.state_dict()


@pytest.mark.parametrize("cut", [1, 4, 5, 20])
def test_interrupted_on_the_way_to_a_saved_position(store: Store, monkeypatch, cut: int):
    def fresh() -> StoreReader:
        return StoreReader(store, rows=300, batch_size=64, seed=0)

    straight, resumed, again = fresh(), fresh(), fresh()
    list(islice(straight, cut))
    list(islice(resumed, 7))
    state = straight.state_dict()
    interrupt_after(monkeypatch, 2, lambda: resumed.load_state_dict(state))
    assert resumed.state_dict() == state and resumed.epoch == straight.epoch
    again.load_state_dict(resumed.state_dict())
    for expected in islice(straight, 12):
        assert same_rows(next(resumed), expected) and same_rows(next(again), expected)


def interrupt_after(monkeypatch, copies: int, doing: Callable[[], object]) -> None:
    """Ctrl-C while a window is being read, after so many of its shards."""
    real, left = StoreReader._copy, [copies]

    def copy(self, shard, parts, place):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, shard, parts, place)

    with monkeypatch.context() as patch:
        patch.setattr(StoreReader, "_copy", copy)
        with pytest.raises(KeyboardInterrupt):
            doing()


def test_the_seed_decides_the_order_and_nothing_else_does(store: Store):
    def first(seed: int) -> list[Rows]:
        return list(islice(StoreReader(store, rows=300, batch_size=50, seed=seed), 10))

    one = first(1)
    torch.manual_seed(5)
    again, other = first(1), first(2)
    assert all(same_rows(a, b) for a, b in zip(one, again, strict=True))
    assert not any(same_rows(a, b) for a, b in zip(one, other, strict=True))


def test_epochs_are_in_different_orders_and_counted(store: Store):
    reader = StoreReader(store, rows=5000, batch_size=2000, seed=0)
    first, epochs = next(reader), [reader.epoch]
    second = next(reader)
    epochs.append(reader.epoch)
    assert not same_rows(first, second) and epochs == [0, 1]
    two_passes = store.manifest.model_copy(update={"text_passes": 2})
    of_two = StoreReader(Store(store.path, two_passes, store.headers, "x"), rows=500, batch_size=2000, seed=0)
    assert [of_two.epoch for _ in islice(of_two, 3)] == [1, 3, 5]


def test_only_what_is_asked_for_is_read(store: Store):
    everything = next(StoreReader(store, rows=300, batch_size=50, seed=0))
    some = next(StoreReader(store, ["mlp_out@1", "mlp_out@1"], rows=300, batch_size=50, seed=0, need_scale=False))
    assert list(some.activations) == ["mlp_out@1"] and some.scale is None
    assert torch.equal(some.activations["mlp_out@1"], everything.activations["mlp_out@1"])
    assert torch.equal(some.tokens, everything.tokens)


def test_half_precision_is_served_in_float32(tmp_path: Path):
    reader = StoreReader(made_up_store(tmp_path / "a", made_up_plan(dtype="bfloat16")), rows=50, batch_size=10, seed=0)
    batch = next(reader)
    assert batch.activations["mlp_out@1"].dtype == torch.float32
    assert torch.equal(batch.activations["mlp_out@1"][:, 0], batch.tokens.to(torch.bfloat16).float())
    assert (batch.tokens.dtype, batch.position.dtype, batch.document.dtype) == (torch.int64,) * 3


def test_batches_are_the_readers_own(store: Store):
    reader = StoreReader(store, rows=100, batch_size=10, seed=0)
    first = next(reader)
    kept = first.activations["mlp_out@1"].clone()
    list(islice(reader, 30))
    assert torch.equal(first.activations["mlp_out@1"], kept)
    first.activations["mlp_out@1"].fill_(-1)
    assert torch.equal(next(StoreReader(store, rows=100, batch_size=10, seed=0)).activations["mlp_out@1"], kept)


def test_sizes_are_true(store: Store):
    reader = StoreReader(store, rows=300, batch_size=50, seed=0)
    assert (reader.windows, reader.window_rows) == (7, 286)
    per_row = store.plan.layout.row_bytes + 8
    assert reader.describe() == {"rows": 286, "bytes": 286 * per_row, "bytes_per_row": per_row}
    small = StoreReader(store, ["mlp_out@1"], rows=300, batch_size=50, seed=0, need_scale=False)
    assert small.describe()["bytes_per_row"] == 2 * 4 + 4 + 4 + 8 + 8


def test_a_batch_is_random_over_the_whole_store(store: Store):
    """Same-document pairs as in a perfect shuffle of the whole store, though a window holds a tenth of it; the writer's
    buffer, which holds a fifth, has five times as many."""
    reader = StoreReader(store, rows=200, batch_size=50, seed=0, epochs=1)
    assert reader.piece_rows == 3
    mixed = measure_mixing(batch.document for batch in reader)
    assert 0.7 < mixed.ratio < 1.4
    as_written = measure_mixing(stored_rows(store).document.split(50))
    assert as_written.ratio > 3.5


def test_windows_are_random_samples_of_all_shards(store: Store):
    """Every window has rows of nearly every shard, and no two epochs cut the store into the same windows."""
    where = {row: i // 100 for i, row in enumerate(whole_rows_in_order(stored_rows(store)))}
    reader = StoreReader(store, rows=500, batch_size=500, seed=0)
    windows = [[where[row] for row in whole_rows_in_order(batch)] for batch in islice(reader, 8)]
    assert all(len(set(window)) >= 18 for window in windows)
    assert len({tuple(sorted(window)) for window in windows}) == 8


def whole_rows_in_order(rows: Rows) -> list[tuple[int, int, int]]:
    return list(zip(rows.tokens.tolist(), rows.position.tolist(), rows.document.tolist(), strict=True))


def test_the_share_of_the_window_is_what_batches_have_on_average(store: Store):
    reader = StoreReader(store, rows=400, batch_size=100, seed=0)
    batches = [batch.document for batch in islice(reader, 4)]
    assert reader.same_document == pytest.approx(measure_mixing(batches).perfect)


def test_random_rows(store: Store):
    some = random_rows(store, 700, seed=3)
    assert len(some) == 700 and not whole_rows(some) - whole_rows(stored_rows(store))
    assert same_rows(some, random_rows(store, 700, seed=3)) and not same_rows(some, random_rows(store, 700, seed=4))
    assert len(random_rows(store, 2000, seed=0)) == 2000
    with pytest.raises(UserError, match="holds 2,000 rows, but 2,001"):
        random_rows(store, 2001, seed=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"seed": 1}, "seed 0"), ({"batch_size": 40}, "batch_size 50"), ({"rows": 100}, "window 286")],
)
def test_another_readers_state_is_refused(store: Store, changed: dict[str, int], said: str):
    state = StoreReader(store, rows=300, batch_size=50, seed=0).state_dict()
    with pytest.raises(UserError, match=f"read its store with {said}"):
        StoreReader(store, **{"rows": 300, "batch_size": 50, "seed": 0, **changed}).load_state_dict(state)


@pytest.mark.parametrize(
    "place",
    [
        {"at": 7},
        {"at": -2},
        {"at": -1},
        {"at": None},
        {"at": True},
        {"at": 1.0},
        {"served": 10**6},
        {"served": 287},
        {"served": -1},
        {"served": "50"},
        {"epoch": -1},
        {"epoch": 0.5},
    ],
    ids=str,
)
def test_a_position_that_does_not_exist_is_refused(store: Store, place: dict[str, object]):
    reader, straight = (StoreReader(store, rows=300, batch_size=50, seed=0) for _ in range(2))
    next(reader)
    next(straight)
    state = reader.state_dict()
    with pytest.raises(UserError, match=r"place in its store is damaged: .* 7 windows of at most 286 rows\.$"):
        reader.load_state_dict({**state, **place})
    with pytest.raises(UserError, match="place in its store is damaged"):
        reader.load_state_dict({key: value for key, value in state.items() if key not in place})
    assert reader.state_dict() == state and same_rows(next(reader), next(straight))


def test_another_stores_state_is_refused(store: Store, tmp_path: Path):
    other = made_up_store(tmp_path / "b", made_up_plan(rows=2000, fill=400, shard=100, seed=1))
    state = StoreReader(store, rows=300, batch_size=50, seed=0).state_dict()
    with pytest.raises(UserError, match="read its store with store"):
        StoreReader(other, rows=300, batch_size=50, seed=0).load_state_dict(state)


def test_files_that_change_while_they_are_read(tmp_path: Path):
    """Truncated under us, the mapping would end the process."""
    reader = StoreReader(made_up_store(tmp_path / "a"), rows=20, batch_size=10, seed=0)
    list(islice(reader, 2))
    shards = sorted((tmp_path / "a").glob("rows-*"))
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"rows-0000\d\.safetensors has changed since"):
        list(islice(reader, 10))
    for shard in shards:
        shard.unlink()
    with pytest.raises(UserError, match=r"rows-0000\d\.safetensors cannot be read"):
        list(islice(reader, 10))
