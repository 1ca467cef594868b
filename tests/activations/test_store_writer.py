"""Stores as they are written: whole, resumable, and of nothing but what was asked for."""

from __future__ import annotations

import errno
import itertools
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.activations import store_writer
from sae_tools.activations.store import Store
from sae_tools.activations.store_writer import check_space, fill_store, look, sizes
from sae_tools.errors import UserError
from sae_tools.rows import Rows
from sae_tools.runs.tensors import load_tensors, save_tensors
from tests.activations.fakes import FakeHarvester, FakeStream
from tests.activations.stores import (
    files_of,
    made_up_buffer,
    made_up_plan,
    made_up_store,
    stored_rows,
    whole_rows,
)
from tests.runs.killing import killed_at_each_operation


@given(
    rows=st.integers(1, 10**7),
    buffer=st.integers(1, 10**6),
    row_bytes=st.integers(1, 10**5),
    shard=st.integers(1, 10**9),
)
def test_fills_divide_the_rows_evenly_and_shards_the_fills(rows: int, buffer: int, row_bytes: int, shard: int):
    fill, per_shard = sizes(rows, buffer, row_bytes, shard)
    assert fill % per_shard == 0
    shards_of_fill, fills = fill // per_shard, math.ceil(rows / buffer)
    assert per_shard == 1 or (per_shard - 1) * row_bytes <= shard  # within a row of what a shard may have
    assert fill <= math.ceil(rows / fills) + shards_of_fill  # nearly the even share, which a buffer holds
    assert fills * fill >= rows


def test_the_rows_are_those_of_the_buffer_in_its_order(tmp_path: Path):
    plan = made_up_plan(rows=100, fill=40, shard=20)
    found = stored_rows(made_up_store(tmp_path / "a", plan))
    served = Rows.concatenate(list(itertools.islice(made_up_buffer(plan), 5)))
    assert torch.equal(found.tokens, served.tokens) and torch.equal(found.document, served.document)
    assert torch.equal(found.activations["mlp_acts@0"], served.activations["mlp_acts@0"])
    assert torch.equal(found.scale, served.scale)
    harvested = Rows.concatenate([FakeHarvester().harvest(c) for c in FakeStream(count=10)])
    fills = [whole_rows(part) for part in (found[:40], found[40:80])]
    assert fills == [whole_rows(harvested[:40]), whole_rows(harvested[40:80])]


@pytest.mark.parametrize("rows", [1, 19, 20, 21, 40, 41, 99])
def test_the_last_shard_is_what_is_left(tmp_path: Path, rows: int):
    store = made_up_store(tmp_path / "a", made_up_plan(rows=rows))
    assert [entry.rows for entry in store.manifest.shards] == [20] * (rows // 20) + ([rows % 20] if rows % 20 else [])
    assert len(stored_rows(store)) == rows


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_is_rounded_once(tmp_path: Path, dtype: str, torch_dtype: torch.dtype):
    full = made_up_store(tmp_path / "full", made_up_plan())
    half = made_up_store(tmp_path / "half", made_up_plan(dtype=dtype))
    x, y = (stored_rows(store).activations["mlp_acts@0"] for store in (full, half))
    assert torch.equal(x.to(torch_dtype).float(), y)
    assert full.plan.layout.row_bytes - half.plan.layout.row_bytes == 2 * 5
    assert torch.equal(stored_rows(full).scale, stored_rows(half).scale)


def test_sizes_said_beforehand_are_true(tmp_path: Path):
    plan = made_up_plan(rows=1000, fill=400, shard=100)
    assert plan.layout.row_bytes == 4 * (2 + 3) + 4 + 4 + 8 + 4
    store = made_up_store(tmp_path / "a", plan)
    on_disk = sum(len(content) for content in files_of(tmp_path / "a").values())
    assert store.bytes < on_disk <= plan.bytes <= on_disk + 8192 * (plan.shards + 1)


def test_a_writer_killed_anywhere_goes_on_bit_for_bit(tmp_path: Path, kill_before):
    plan = made_up_plan(rows=70)
    made_up_store(tmp_path / "whole", plan)
    expected = files_of(tmp_path / "whole")

    def act(n: int) -> None:
        made_up_store(tmp_path / str(n), plan)

    survived = killed_at_each_operation(kill_before, act)
    assert survived > 12
    for n in range(survived):
        made_up_store(tmp_path / str(n), plan)
        assert files_of(tmp_path / str(n)) == expected, n


def test_going_on_harvests_only_what_is_missing(tmp_path: Path):
    plan = made_up_plan(rows=200)
    asked = iter([False] * 6 + [True] * 9)
    assert fill_store(tmp_path / "a", plan, made_up_buffer(plan), {}, should_stop=lambda: next(asked)) is None
    assert look(tmp_path / "a", plan).rows == 120
    stream, seen = FakeStream(), []
    made_up_store(tmp_path / "a", plan, stream, progress=seen.append)
    assert seen == [140, 160, 180, 200]
    assert stream.drawn < stream.at / 2 + 2
    made_up_store(tmp_path / "b", plan)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_complete_store_is_left_as_it_is(tmp_path: Path):
    made_up_store(tmp_path / "a")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    stream = FakeStream()
    assert made_up_store(tmp_path / "a", stream=stream).rows == 100
    assert stream.drawn == 0 and {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()} == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 there, but 1 here"),
        ({"rows": 99}, "rows is 100 there, but 99 here"),
        ({"dtype": "bfloat16"}, "dtype is float32 there, but bfloat16 here"),
        ({"scale": False}, "scale is True there, but False here"),
        ({"model": {"weights_fingerprint": "b2"}}, "model.weights_fingerprint is a1 there, but b2 here"),
        ({"shard": 10}, "shard_rows is 20 there, but 10 here"),
    ],
)
def test_another_store_is_not_touched(tmp_path: Path, complete: bool, change: dict, said: str):
    made_up_store(tmp_path / "a")
    if not complete:
        (tmp_path / "a" / "manifest.json").unlink()
    before = files_of(tmp_path / "a")
    with pytest.raises(UserError, match=f"holds a store with other settings: {said}"):
        made_up_store(tmp_path / "a", made_up_plan(**change))
    assert files_of(tmp_path / "a") == before


def test_where_a_model_lay_is_no_setting_of_a_store(tmp_path: Path):
    made_up_store(tmp_path / "a")
    moved = {"name": "elsewhere", "kind": "folder", "revision": None, "weights_fingerprint": "a1"}
    made_up_store(tmp_path / "a", made_up_plan(model=moved))


@pytest.mark.parametrize("name", ["notes.txt", "rows-00001.safetensors", "config.yaml"])
def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, name: str):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_text("mine")
    with pytest.raises(UserError, match=f"something else than a store \\({name}"):
        made_up_store(tmp_path / "a")
    assert files_of(tmp_path / "a") == {name: b"mine"} and not (tmp_path / "a" / ".lock").exists()


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        made_up_store(tmp_path / "a")


def test_a_damaged_shard_is_not_gone_on_from(tmp_path: Path):
    made_up_store(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    shard = tmp_path / "a" / "rows-00004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"rows-00004\.safetensors is damaged"):
        made_up_store(tmp_path / "a")
    shard.write_bytes(b"another file")
    with pytest.raises(UserError, match=r"rows-00004\.safetensors is truncated"):
        made_up_store(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.pop("next"),
        lambda meta: meta.update(next=None),
        lambda meta: meta.update(next={}),
        lambda meta: meta.pop("text_passes"),
        lambda meta: meta.update(text_passes="1"),
        lambda meta: meta.update(text_passes=0),
    ],
)
def test_a_shard_that_does_not_say_where_the_text_stood(tmp_path: Path, change):
    made_up_store(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    shard = tmp_path / "a" / "rows-00004.safetensors"
    tensors, meta = load_tensors(shard)
    change(meta)
    save_tensors(shard, tensors, meta)
    with pytest.raises(UserError, match=r"rows-00004\.safetensors does not say where the text stood .*\.$"):
        made_up_store(tmp_path / "a")
    shard.unlink()
    made_up_store(tmp_path / "a")


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(store_writer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"needs [\d,]+ bytes .* but its disk has 1,000 free"):
        made_up_store(tmp_path / "deep" / "a")
    assert list((tmp_path / "deep" / "a").glob("rows*")) == []
    check_space(tmp_path / "not" / "there" / "yet", 1000)


def test_a_disk_that_fills_keeps_what_is_there(tmp_path: Path, monkeypatch):
    fsync, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match="no space left on device while writing .*rows-0000.*run the same command again"
    ):
        made_up_store(tmp_path / "a")
    monkeypatch.setattr(os, "fsync", fsync)
    made_up_store(tmp_path / "a")
    made_up_store(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_two_writers(tmp_path: Path, monkeypatch):
    def taken(folder: Path) -> None:
        raise UserError(f"{folder} is being written by another process; wait for it or stop it.")

    monkeypatch.setattr("sae_tools.runs.lock.take_lock", taken)
    with pytest.raises(UserError, match="another process"):
        made_up_store(tmp_path / "a")


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (7e4, "float16", r"reach 7e\+04, more than float16 holds"),
        (math.nan, "float32", "NaN"),
        (math.inf, "bfloat16", "infinite"),
    ],
)
def test_activations_that_no_dtype_holds(tmp_path: Path, value: float, dtype: str, said: str):
    class Loud(FakeHarvester):
        def harvest(self, contexts):
            rows = super().harvest(contexts)
            rows.activations["mlp_out@1"][0, 0] = value
            return rows

    plan = made_up_plan(dtype=dtype)
    buffer = made_up_buffer(plan)
    buffer.harvester = Loud()  # type: ignore[assignment]
    with pytest.raises(UserError, match=said):
        fill_store(tmp_path / "a", plan, buffer, {})


def test_text_that_ends_too_early(tmp_path: Path):
    with pytest.raises(UserError, match="The text ended before the store's 100 rows"):
        made_up_store(tmp_path / "a", stream=FakeStream(count=3))


def test_a_store_is_opened_after_it_was_moved(tmp_path: Path):
    store = made_up_store(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert Store.open(tmp_path / "b").fingerprint == store.fingerprint
