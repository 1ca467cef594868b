from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sae_tools.errors import UserError
from sae_tools.runs import atomic
from sae_tools.runs.directory import RunDirectory
from sae_tools.runs.tensors import load_tensors, save_tensors
from tests.runs.killing import Killed, killed_at_each_operation

DICTIONARIES = ("acts", "update")


def save(run: RunDirectory, tokens: int) -> None:
    for name in DICTIONARIES:
        with run.checkpoint_writer(name, tokens) as folder:
            (folder / "cfg.json").write_text("{}")
            save_tensors(folder / "trainer.safetensors", {"x": torch.full((3,), tokens)}, {"tokens": tokens})
    run.commit_checkpoint(tokens, {"step": tokens // 10, "tokens": tokens, "data": {"position": [tokens, "ä"]}})


def whole(run: RunDirectory) -> int | None:
    """Tokens of the newest checkpoint, after loading all of it."""
    state = run.newest_checkpoint()
    if state is None:
        return None
    for name in DICTIONARIES:
        tensors, meta = load_tensors(run.checkpoint(name, state["tokens"]) / "trainer.safetensors")
        assert meta["tokens"] == state["tokens"] and tensors["x"].tolist() == [state["tokens"]] * 3
    assert state["data"] == {"position": [state["tokens"], "ä"]}
    return state["tokens"]


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, "job")
    run.config.write_text("")
    return run


def everything(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and p.name != ".lock")


def test_the_newest_committed_checkpoint_is_the_one(run):
    assert whole(run) is None
    for tokens in (0, 100, 1000):
        save(run, tokens)
        assert whole(run) == tokens
    assert run.checkpoint_tokens("acts") == [0, 100, 1000]
    kept = [t for t in (0, 100, 1000) if (run.checkpoint("acts", t) / "trainer.safetensors").exists()]
    assert kept == [100, 1000]  # the first is still there for readers, but no longer for --resume
    assert (run.checkpoint("update", 0) / "cfg.json").exists()


@pytest.mark.parametrize(("before", "old"), [([], None), ([0], 0), ([0, 10], 10), ([0, 20], 0)])
def test_killed_anywhere_while_saving_the_newest_is_the_old_or_the_new(tmp_path, kill_before, before, old):
    """The last case writes a checkpoint again."""
    seen = set()

    def act(n: int) -> None:
        run = RunDirectory.create(tmp_path, f"job{n}")
        run.config.write_text("")
        for tokens in before:
            kill_before(-1)
            save(run, tokens)
        kill_before(n)
        try:
            save(run, 20)
        finally:
            kill_before(-1)
            again = RunDirectory.open(run.path)
            seen.add(whole(again))
            tokens = whole(again)
            again.drop_after(-1 if tokens is None else tokens)
            assert whole(again) == tokens
            there = everything(again.path)
            assert not any(atomic.TEMPORARY in name for name in there)
            assert tokens == 20 or not any(name.startswith("20/") or "/20" in name for name in there)
            save(again, 20)
            assert whole(again) == 20

    assert killed_at_each_operation(kill_before, act) > 15
    assert seen == {old, 20}


def test_killed_anywhere_while_dropping_it_is_dropped_the_next_time(tmp_path, kill_before):
    def act(n: int) -> None:
        kill_before(-1)
        run = RunDirectory.create(tmp_path, f"job{n}")
        run.config.write_text("")
        save(run, 0)
        save(run, 10)
        with run.checkpoint_writer("acts", 20):
            pass
        (run.path / "acts" / "checkpoints" / ".tmp-30").mkdir()
        kill_before(n)
        try:
            run.drop_after(0)
        except Killed:
            kill_before(-1)
            assert whole(run) in (0, 10)
            run.drop_after(0)
            raise
        finally:
            kill_before(-1)
            assert whole(run) == 0 and run.checkpoint_tokens("acts") == [0] == run.checkpoint_tokens("update")
            assert not list(run.path.rglob(".tmp-*"))

    assert killed_at_each_operation(kill_before, act) > 5


def test_a_checkpoint_may_be_written_again(run):
    save(run, 10)
    save(run, 10)
    assert whole(run) == 10


def test_a_damaged_newest_checkpoint_is_said_and_not_passed_over(run):
    save(run, 10)
    save(run, 20)
    file = run.checkpoint("update", 20) / "trainer.safetensors"
    os.truncate(file, 30)
    with pytest.raises(
        UserError, match=r"the newest checkpoint is damaged, .*/20/trainer.safetensors has 30 bytes ins"
    ):
        run.newest_checkpoint()
    file.unlink()
    with pytest.raises(
        UserError, match=r"trainer.safetensors is missing; remove .*/state/20.json to continue from the"
    ):
        run.newest_checkpoint()
    marker = run.path / "state" / "20.json"
    marker.write_text(marker.read_text()[:50])
    with pytest.raises(UserError, match=r"state/20.json is truncated or was not written by sae_tools; remove"):
        run.newest_checkpoint()
    atomic.write_json(marker, {"files": []})
    with pytest.raises(UserError, match=r"state/20.json does not describe a checkpoint"):
        run.newest_checkpoint()
    marker.unlink()
    assert whole(run) == 10
    os.truncate(run.path / "state" / "10.json", 3)
    with pytest.raises(UserError, match="it cannot be resumed"):
        run.newest_checkpoint()
