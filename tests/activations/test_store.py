"""What is refused when a store is opened, and what only a full check finds."""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_tools.activations.store import Store
from sae_tools.activations.store_shards import Layout, read_header
from sae_tools.config import RowsConfig
from sae_tools.errors import UserError
from sae_tools.runs import atomic
from tests.activations.stores import DATA, MODEL, made_up_plan, made_up_store

SECOND = "rows-00001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_up_store(tmp_path / "a").path


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        Store.open(folder)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_what_an_opened_store_says(folder: Path):
    store = Store.open(folder)
    assert (store.rows, store.plan) == (100, made_up_plan())
    assert store.bytes == sum(path.stat().st_size for path in folder.glob("rows-*"))
    assert store.manifest.text_passes == 1 and store.manifest.versions == {"python": "3"}
    seen: list[int] = []
    store.verify(seen.append)
    assert seen == [20, 40, 60, 80, 100]


def test_folders_that_are_no_store(tmp_path: Path, folder: Path):
    assert "there is no such activation store" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is no activation store" in refused(tmp_path / "empty")
    (folder / "manifest.json").unlink()
    assert "is not complete" in refused(folder)


@pytest.mark.parametrize("n", [0, 5, 100, 3000, 10**9])
def test_a_truncated_shard(folder: Path, n: int):
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[: min(n, len(content) - 1)])
    message = refused(folder)
    assert SECOND in message and "truncated" in message


def test_a_missing_shard(folder: Path):
    (folder / SECOND).unlink()
    assert f"{SECOND} is missing" in refused(folder)


def test_a_shard_with_something_behind_it(folder: Path):
    with (folder / SECOND).open("ab") as file:
        file.write(b"more")
    assert SECOND in refused(folder)


def test_a_shard_of_another_store(folder: Path, tmp_path: Path):
    other = made_up_store(tmp_path / "b", made_up_plan(seed=1)).path
    shutil.copy(other / SECOND, folder / SECOND)
    assert f"{SECOND} is not the file that manifest.json describes" in refused(folder)
    shutil.copy(folder / "rows-00000.safetensors", folder / SECOND)
    assert SECOND in refused(folder)


def test_a_file_of_another_program(folder: Path):
    size = (folder / SECOND).stat().st_size
    save_file({"tokens": torch.zeros(20, dtype=torch.int32)}, folder / SECOND)
    assert f"{SECOND} is no part of an activation store" in refused(folder)
    (folder / SECOND).write_bytes(b"\xff" * size)
    assert SECOND in refused(folder)
    (folder / SECOND).write_bytes(struct.pack("<Q", 64) + b"[" * (size - 8))
    assert f"{SECOND} is damaged or no safetensors file" in refused(folder)
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()
    assert f"{SECOND} cannot be read" in refused(folder)


def with_header(path: Path, change) -> None:
    """The shard with its header rewritten in place."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


HEADERS = [
    lambda h: h["tokens"].update(shape=[10**15], data_offsets=[0, 4 * 10**15]),
    lambda h: h["tokens"].update(dtype="F32"),
    lambda h: h["tokens"].update(data_offsets=[0, 80]),
    lambda h: h["tokens"].update(shape=[]),
    lambda h: h["tokens"].update(shape="20"),
    lambda h: h["mine"].update(shape=[1]) if "mine" in h else h.update(mine=dict(h["tokens"])),
    lambda h: h.pop("document"),
    lambda h: h.pop("__metadata__"),
    lambda h: h["__metadata__"].update(sae_tools="99"),
    lambda h: h["__metadata__"].update(meta="{"),
    lambda h: h["__metadata__"].update(sha256="0" * 64),
    lambda h: h["activations.mlp_out@1"].update(shape=[20, -2]),
    lambda h: h["tokens"].update(shape=[math.inf]),
    lambda h: h["tokens"].update(shape=[math.nan]),
    lambda h: h["tokens"].update(shape=[20.0]),
    lambda h: h["tokens"].update(shape=[True]),
    lambda h: h["tokens"].update(shape=[10**4000], data_offsets=[0, 4 * 10**4000]),
    lambda h: h["tokens"].update(data_offsets=[0, math.inf]),
    lambda h: h["document"].update(data_offsets=[math.nan, 160]),
    lambda h: h["document"].update(data_offsets=[str(x) for x in h["document"]["data_offsets"]]),
    lambda h: h["document"].update(data_offsets=[0.5, 160.5]),
]


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_a_header_that_lies(folder: Path, number: int):
    """Nothing that it declares is allocated."""
    with_header(folder / SECOND, HEADERS[number])
    assert SECOND in refused(folder)


def test_a_flipped_bit_is_found_when_every_byte_is_checked(folder: Path):
    content = bytearray((folder / SECOND).read_bytes())
    content[-3] ^= 4
    (folder / SECOND).write_bytes(content)
    store = Store.open(folder)  # which reads no rows
    with pytest.raises(UserError, match=f"{SECOND} is damaged"):
        store.verify()


def rewritten(folder: Path, **changes: Any) -> None:
    content = atomic.read_json(folder / "manifest.json")
    for key, value in changes.items():
        at = content
        *path, last = key.split("__")
        for part in path:
            at = at[part]
        at[last] = value
    atomic.write_json(folder / "manifest.json", content)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "another"}, "is not the manifest of an activation store"),
        ({"version": 2}, "has version 2, but this version of sae_tools reads 1"),
        ({"plan__dtype": "int8"}, r"does not describe an activation store \(plan.dtype\)"),
        ({"plan__rows": 10**18}, "does not list the 50,000,000,000,000,000 shards"),
        ({"plan__rows": 101}, "does not list the 6 shards"),
        ({"plan__rows": 99}, "rows-00004.safetensors is not the file"),
        ({"plan__scale": False}, r"has other columns than its store \(scale\)"),
        ({"shards": []}, "does not list the 5 shards"),
        ({"more": 1}, r"does not describe an activation store \(more\)"),
    ],
)
def test_a_manifest_that_is_not_the_stores(folder: Path, changes: dict[str, Any], said: str):
    rewritten(folder, **changes)
    with pytest.raises(UserError, match=said):
        Store.open(folder)


def test_a_manifest_that_leads_elsewhere(folder: Path):
    entries = atomic.read_json(folder / "manifest.json")["shards"]
    entries[1]["file"] = "../a/rows-00001.safetensors"
    rewritten(folder, shards=entries)
    assert "does not list the 5 shards" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": "0"}'])
def test_a_damaged_manifest(folder: Path, text: str):
    (folder / "manifest.json").write_text(text)
    assert "manifest.json is" in refused(folder)


def test_the_same_model_and_text(folder: Path):
    store = Store.open(folder)
    store.check_same_model({**MODEL, "name": "moved"})
    store.check_same_text({**DATA, "shuffle_characters": 7})
    with pytest.raises(UserError, match="another language model .made up.: weights_fingerprint is a1 there, but b2"):
        store.check_same_model({**MODEL, "weights_fingerprint": "b2"})
    for data in ({**DATA, "source": "b"}, {"source": "made up"}, {**DATA, "more": 1}):
        with pytest.raises(UserError, match="other text than the job's"):
            store.check_same_text(data)


def test_the_same_rows(folder: Path, tmp_path: Path):
    store = Store.open(folder)
    store.check_rows(RowsConfig(), {"mlp_out@1": 2}, "dictionary 'a'")
    with pytest.raises(UserError, match="written with rows.skip_positions 1, but the job has 0"):
        store.check_rows(RowsConfig(skip_positions=0), {}, None)
    with pytest.raises(UserError, match="holds no site 'mlp_out@2'; it has mlp_out@1, mlp_acts@0"):
        store.check_rows(RowsConfig(), {"mlp_out@2": 2}, None)
    with pytest.raises(UserError, match="'mlp_out@1' with 2 dimensions, but the model has 3"):
        store.check_rows(RowsConfig(), {"mlp_out@1": 3}, None)
    bare = made_up_store(tmp_path / "b", made_up_plan(scale=False))
    bare.check_rows(RowsConfig(), {"mlp_out@1": 2}, None)
    with pytest.raises(UserError, match="lacks the final norm's scale, which dictionary 'a' needs"):
        bare.check_rows(RowsConfig(), {"mlp_out@1": 2}, "dictionary 'a'")


def test_a_header_read_alone(folder: Path):
    header = read_header(folder / SECOND, Store.open(folder).plan.layout)
    assert header.rows == 20 and header.meta["shard"] == 1 and header.meta["next"]["fill"] == 1
    with pytest.raises(UserError, match="other columns"):
        read_header(folder / SECOND, Layout({"mlp_out@1": 2}, "float32", True))
