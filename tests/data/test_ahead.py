"""Reading ahead: nothing but time depends on it, and it leaves nothing behind."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_tools.config import DataConfig
from sae_tools.data import ahead
from sae_tools.data.ahead import reads_ahead
from sae_tools.data.blocks import BlockReader
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from tests.data.test_stream import open_stream, take, texts, write
from tests.tiny_models import byte_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus"), texts(60))


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "text"]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Every thread that was started."""
    started: list[threading.Thread] = []
    start = ahead._Reading.start
    monkeypatch.setattr(ahead._Reading, "start", lambda thread: (started.append(thread), start(thread)))
    return started


@settings(max_examples=25)
@given(
    moves=st.lists(st.integers(0, 15) | st.just("save") | st.just("back"), max_size=12),
    how=st.fixed_dictionaries(
        {
            "batch": st.integers(1, 7),
            "seed": st.integers(0, 3),
            "epochs": st.none() | st.integers(1, 2),
            "split": st.sampled_from(["train", "heldout"]),
            "shuffle_characters": st.sampled_from([1, 120, 700, 100_000]),
            "context_length": st.sampled_from([2, 16, 40]),
            "bos": st.sampled_from(["context", "document", "none"]),
        }
    ),
)
def test_the_same_contexts_and_positions_as_without(corpus: Path, moves: list, how: dict):
    plain, read_ahead = open_stream(corpus, **how), open_stream(corpus, ahead=True, **how)
    saved = plain.state_dict()
    for move in moves:
        if move == "save":
            saved = json.loads(json.dumps(read_ahead.state_dict()))
        elif move == "back":
            plain.load_state_dict(saved)
            read_ahead.load_state_dict(saved)
        else:
            for _ in range(move):
                expected, found = next(plain, None), next(read_ahead, None)
                assert (expected is None) == (found is None)
                if expected is not None and found is not None:
                    assert torch.equal(expected.tokens, found.tokens)
                    assert torch.equal(expected.document, found.document)
        assert plain.state_dict() == read_ahead.state_dict()
        assert plain.epoch == read_ahead.epoch and plain.fingerprint() == read_ahead.fingerprint()


def test_the_next_block_is_there_when_it_is_asked_for(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    reads: list[tuple[bool, int]] = []
    read = BlockReader._read

    def noted(*args):
        found = read(*args)
        reads.append((threading.current_thread() is threading.main_thread(), len(found[0])))
        return found

    monkeypatch.setattr(BlockReader, "_read", noted)
    stream = open_stream(corpus, ahead=True, batch=1)
    take(stream, 1)
    assert [here for here, _ in reads] == [True]  # nothing before half of the block has been served
    take(stream, 200)
    assert len(reads) > 8
    for (_, contexts), (here, _) in itertools.pairwise(reads):
        assert here == (contexts == 0)  # only after a block without a context there is no time to read ahead


def test_no_thread_where_there_is_nothing_to_read(corpus: Path, threads: list):
    for split in ("train", "heldout"):
        assert len(list(open_stream(corpus, split, ahead=True, epochs=1, shuffle_characters=10**6))) > 1
    list(open_stream(corpus, "heldout"))
    take(open_stream(corpus), 40)
    assert not threads


def test_one_block_ahead_and_no_more(corpus: Path, threads: list):
    stream = open_stream(corpus, ahead=True, batch=1, context_length=2, shuffle_characters=3000)
    take(stream, 900)
    served = len(threads)
    while reading():
        time.sleep(0.01)
    for _ in range(5):
        next(stream)
    assert len(threads) <= served + 1


def failing_at(path: Path, line: int) -> Path:
    rows = [json.dumps({"text": f"{i} " * 20}) + "\n" for i in range(100)]
    rows[line] = "no JSON\n"
    path.write_text("".join(rows))
    return path


def until_error(stream: ContextStream) -> tuple[list, str]:
    """What came before the error, and what it said, twice."""
    found: list = []
    with pytest.raises(UserError) as first:
        while True:
            found.append(take(stream, 1))
    with pytest.raises(UserError) as second:
        next(stream)
    assert str(first.value) == str(second.value)
    return found, str(first.value)


def test_an_error_comes_where_it_would_have_come(tmp_path: Path):
    path = failing_at(tmp_path / "t.jsonl", 60)
    how: dict = {"batch": 1, "heldout": 0, "shuffle_characters": 500}
    found, said = until_error(open_stream(path, ahead=True, **how))
    assert (found, said) == until_error(open_stream(path, **how))
    assert len(found) > 50 and "line 61" in said


def test_an_id_outside_the_vocabulary_comes_where_it_would_have_come(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"ids": [4, 5, 6, 7, 8 + (i == 70)]}) + "\n" for i in range(90)))
    cfg = DataConfig(
        source=str(path), token_column="ids", bos="none", context_length=5, heldout=0, shuffle_characters=200
    )
    found = [until_error(ContextStream(cfg, None, batch=1, vocabulary=9, ahead=a)) for a in (False, True)]
    assert found[0] == found[1]
    assert len(found[0][0]) >= 50 and "t.jsonl:71: token id 9 is outside" in found[0][1]


def gated(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Threads read nothing until the event is set; whoever is not a thread is not held."""
    gate = threading.Event()
    read = BlockReader._read

    def waiting(self: BlockReader, unwanted: Callable[[], bool]):
        while threading.current_thread() is not threading.main_thread() and not gate.is_set() and not unwanted():
            time.sleep(0.001)
        return read(self, unwanted)

    monkeypatch.setattr(BlockReader, "_read", waiting)
    return gate


def test_a_position_taken_while_the_next_block_is_being_read(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    gate = gated(monkeypatch)
    stream, plain = open_stream(corpus, ahead=True, batch=1), open_stream(corpus, batch=1)
    while not reading():
        take(stream, 1)
        take(plain, 1)
    state = stream.state_dict()
    assert state == plain.state_dict()
    gate.set()
    expected = take(plain, 30)
    assert take(stream, 30) == expected
    stream.load_state_dict(state)  # drops what is being read
    assert take(stream, 30) == expected


def test_going_elsewhere_does_not_wait_for_a_block_that_nobody_wants(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    gated(monkeypatch)  # never opened
    stream = open_stream(corpus, ahead=True, batch=1)
    beginning = stream.state_dict()
    expected = take(open_stream(corpus, batch=1), 2)
    while not reading():
        take(stream, 1)
    other = open_stream(corpus, batch=1)
    take(other, 40)
    stream.load_state_dict(other.state_dict())
    assert not reading()
    stream.ahead = False
    stream.load_state_dict(beginning)
    assert take(stream, 2) == expected


def test_a_stream_that_nobody_holds_ends_its_thread(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    gated(monkeypatch)  # never opened
    stream = open_stream(corpus, ahead=True, batch=1)
    while not reading():
        next(stream)
    thread = reading()[0]
    del stream
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_interrupted_while_waiting_nothing_is_lost(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    stream, plain = open_stream(corpus, ahead=True, batch=1), open_stream(corpus, batch=1)
    expected = take(plain, 150)
    join = threading.Thread.join
    interruptions = 0

    def interrupted(thread: threading.Thread, timeout: float | None = None):
        nonlocal interruptions
        interruptions += 1
        if interruptions % 2:
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    found = []
    while len(found) < 150:
        try:
            found += take(stream, 1)
        except KeyboardInterrupt:
            continue
    assert found == expected and interruptions > 10


def test_interrupted_while_reading_nothing_is_lost(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    expected = take(open_stream(corpus, batch=1), 150)
    gather = BlockReader._gather
    calls = 0

    def interrupted(self: BlockReader, unwanted: Callable[[], bool]):
        nonlocal calls
        calls += 1
        found = gather(self, unwanted)
        if calls % 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(BlockReader, "_gather", interrupted)
    stream, found = open_stream(corpus, batch=1), []
    while len(found) < 150:
        try:
            found += take(stream, 1)
        except KeyboardInterrupt:
            continue
    assert found == expected and calls > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gate = gated(monkeypatch)
    how = {"ahead": True, "batch": 1, "token_column": "ids", "bos": "none", "heldout": 0, "context_length": 5}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"ids": list(range(i, i + 5))}) + "\n" for i in range(90)))
    stream, plain = open_stream(path, **how), open_stream(path, **{**how, "ahead": False})
    while not reading():
        take(stream, 1)
        take(plain, 1)
    expected = take(plain, 30)
    child = os.fork()
    if child == 0:
        gate.set()
        os._exit(0 if take(stream, 30) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    assert take(stream, 30) == expected


ENDING = """
import sys, threading, time
from sae_tools.config import DataConfig
from sae_tools.data.stream import ContextStream
from tests.tiny_models import byte_tokenizer
cfg = DataConfig(source=sys.argv[1], context_length=64, heldout=0, shuffle_characters=1_000_000)
stream = ContextStream(cfg, byte_tokenizer(), batch=64, ahead=True)
while threading.active_count() == 1:
    next(stream)
time.sleep(float(sys.argv[2]))
print("busy" if threading.active_count() > 1 else "idle", flush=True)
if sys.argv[3] == "error":
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(("how", "delay"), [("end", 0.0), ("error", 0.05)])
def test_a_process_ends_at_once_and_silently(tmp_path: Path, how: str, delay: float):
    (tmp_path / "t.jsonl").write_text((json.dumps({"text": "some words and more of them " * 400}) + "\n") * 600)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path / "t.jsonl"), str(delay), how],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout in ("busy\n", "idle\n") and time.monotonic() - started < 50
    if how == "end":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.stderr.strip().splitlines()[-1] == "KeyboardInterrupt" and done.stderr.count("Traceback") == 1


def test_where_there_is_a_core_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for threads, expected in ((3, True), (4, False), (8, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert reads_ahead("cpu") is expected
        assert reads_ahead(torch.device("cuda", 0))


def test_a_tokenizer_that_lets_no_thread_run_is_used_where_it_is(corpus: Path, threads: list):
    class Slow:
        bos_token_id = eos_token_id = 0

        def __call__(self, texts: list[str], **_) -> dict[str, list[list[int]]]:
            return {"input_ids": [list(text.encode()) for text in texts]}

    cfg = DataConfig(source=str(corpus), context_length=16, shuffle_characters=300)
    slow = ContextStream(cfg, Slow(), batch=4, ahead=True)
    take(slow, 30)
    assert not threads and not slow.ahead
    assert ContextStream(cfg, byte_tokenizer(), batch=4, ahead=True).ahead
