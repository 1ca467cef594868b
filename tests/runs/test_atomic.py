from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_tools.errors import UserError
from sae_tools.runs import atomic
from tests.runs.killing import Killed, killed_at_each_operation


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(atomic.TEMPORARY))


def test_a_file_is_old_or_new_wherever_the_process_is_killed(tmp_path, kill_before):
    path = tmp_path / "a"
    path.write_text("old")
    seen = set()

    def act(n: int) -> None:
        try:
            atomic.write_text(path, "new")
        except Killed:
            seen.add(path.read_text())
            path.write_text("old")
            raise

    assert killed_at_each_operation(kill_before, act) >= 3
    assert seen == {"old", "new"} and path.read_text() == "new"
    assert visible(tmp_path) == ["a"]
    atomic.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_absent_or_whole_wherever_the_process_is_killed(tmp_path, kill_before):
    path = tmp_path / "x" / "y"
    seen = set()

    def act(n: int) -> None:
        try:
            with atomic.creating_folder(path) as folder:
                (folder / "one").write_text("1")
                (folder / "two").write_text("2")
        except Killed:
            names = tuple(sorted(os.listdir(path))) if path.exists() else None
            seen.add(names)
            raise

    assert killed_at_each_operation(kill_before, act) >= 5
    assert seen == {None, ("one", "two")}
    atomic.remove_leftovers(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["x", "x/y", "x/y/one", "x/y/two"]


def test_a_folder_in_the_way_is_replaced_and_errors_leave_it(tmp_path):
    path = tmp_path / "y"
    with atomic.creating_folder(path) as folder:
        (folder / "old").write_text("")
    with pytest.raises(RuntimeError), atomic.creating_folder(path) as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert os.listdir(path) == ["old"]
    with atomic.creating_folder(path) as folder:
        (folder / "new").write_text("")
    assert os.listdir(path) == ["new"] and os.listdir(tmp_path) == ["y"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(UserError, match=r"no space left on device while writing .*/a; nothing already written is lost"):
        with atomic.replacing(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    with pytest.raises(UserError, match="no space left"), atomic.creating_folder(tmp_path / "b") as folder:
        (folder / "half").write_text("")
        raise error
    with pytest.raises(UserError, match=r"while writing .*/b;"), atomic.creating_folder(tmp_path / "b") as folder:
        with atomic.replacing(folder / "inner"):
            raise error
    assert os.listdir(tmp_path) == ["a"]


def test_other_errors_pass():
    with pytest.raises(PermissionError), atomic.space_on_device_for(Path("a")):
        raise PermissionError(errno.EACCES, "no")


def test_json_with_a_checksum(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"b": [1, 2.5, None], "a": "ä"})
    assert atomic.read_json(path) == {"a": "ä", "b": [1, 2.5, None]}
    whole = path.read_text()
    for text in ("", "{", "[]", "{}", "3", whole[: len(whole) // 2], "[" * 100_000, whole.replace("2.5", "2.6")):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json is (truncated|damaged)"):
            atomic.read_json(path)
    with pytest.raises(UserError, match="cannot be read"):
        atomic.read_json(tmp_path / "b.json")


def test_files_have_the_permissions_that_the_user_s_umask_leaves(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    with atomic.replacing(tmp_path / "ours") as temporary:
        save_file({"x": torch.zeros(2)}, temporary)
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode
