from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from sae_tools.errors import UserError
from sae_tools.runs import atomic
from sae_tools.tracking.wandb import WandbTracker, flat


def test_lines_are_flattened():
    record = {"step": 3, "tokens": 30, "dictionaries": {"a": {"fvu": 0.5}, "b": {"fvu": 0.4}}, "time": {"train": 1.0}}
    assert flat(record) == {"step": 3, "tokens": 30, "a/fvu": 0.5, "b/fvu": 0.4, "time/train": 1.0}


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict] = []
        self.status = None

    def define_metric(self, *_, **__) -> None: ...

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.status = exit_code


@pytest.fixture
def fake(monkeypatch):
    """wandb without its background process; `calls` is what it was started with."""
    calls: list[dict] = []

    def init(**settings):
        calls.append(settings)
        if settings["project"] == "broken":
            raise ConnectionError("cannot reach\nthe server.")
        return FakeRun()

    module = SimpleNamespace(init=init, Settings=lambda **kwargs: kwargs)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_a_resumed_run_keeps_its_id_and_a_new_one_gets_another(tmp_path, fake):
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        with WandbTracker("online", "p", tmp_path / name, {"seed": 1}) as tracker:
            tracker.record({"tokens": 5, "dictionaries": {"up": {"fvu": 0.5}}})
            tracker.update(5)
            assert tracker._run.logged == [{"tokens": 5, "up/fvu": 0.5}]
        assert tracker._run.status == 0
    first, resumed, new = (call["id"] for call in fake)
    assert first == resumed != new
    assert [call["resume"] for call in fake] == [None, "allow", None]
    assert fake[0]["dir"] == str(tmp_path / "a") and fake[0]["config"] == {"seed": 1} and fake[0]["mode"] == "online"


def test_a_run_that_fails_is_marked_as_failed(tmp_path, fake):
    with pytest.raises(RuntimeError), WandbTracker("online", "p", tmp_path, {}) as tracker:
        raise RuntimeError
    assert tracker._run.status == 1


def test_a_failure_to_start_is_one_sentence(tmp_path, fake):
    with pytest.raises(UserError, match=r"wandb does not start \(cannot reach the server\); log in with"):
        WandbTracker("online", "broken", tmp_path, {})


def test_offline_for_real(tmp_path, monkeypatch):
    """Needs neither network nor account."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with WandbTracker("offline", "sae_tools_test", tmp_path, {"seed": 1}) as tracker:
        tracker.record({"step": 1, "tokens": 10, "dictionaries": {"up": {"fvu": 0.123456}}})
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert atomic.read_json(tmp_path / "state" / "wandb.json")["id"] in file.name
    waited = 0.0  # its background process writes after we have finished
    while not (b"up/fvu" in file.read_bytes() and b"0.123456" in file.read_bytes()):
        time.sleep(0.1)
        waited += 0.1
        assert waited < 30
