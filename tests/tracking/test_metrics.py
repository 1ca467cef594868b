from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sae_tools.errors import UserError
from sae_tools.tracking.metrics import MetricsWriter, read_metrics, without_time


def record(step: int, seconds: float = 1.0) -> dict:
    return {"step": step, "dictionaries": {"up": {"loss": step / 7}}, "time": {"seconds": seconds}}


def write(path: Path, steps: range, resume_at: int | None = None) -> None:
    writer = MetricsWriter(path, resume_at=resume_at)
    for step in steps:
        writer.write(record(step, seconds=step if resume_at is None else -1))
    writer.flush()
    writer.close()


def test_lines_come_back_exactly_and_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(record(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1)]
    writer.write({"step": 2, "loss": float("nan"), "all": [float("inf"), (1.0, -float("inf"))]})
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"step": 2, "loss": None, "all": [None, [1.0, None]]}


@pytest.mark.parametrize("torn", ["", '{"step": 9, "dic', '{"step": 5}'])
def test_a_resumed_run_ends_with_the_lines_of_one_never_stopped(tmp_path, torn):
    write(tmp_path / "whole", range(10))
    write(tmp_path / "resumed", range(8))
    with open(tmp_path / "resumed", "a") as file:
        file.write(torn)
    write(tmp_path / "resumed", range(6, 10), resume_at=5)
    whole, resumed = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "resumed")
    assert whole != resumed and without_time(whole) == without_time(resumed)
    assert sorted(os.listdir(tmp_path)) == ["resumed", "whole"]


def test_a_torn_last_line_is_never_written_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"')
    write(path, range(2, 3))
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_files_that_are_no_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(path)
    for line in ("[]", "{}", '{"step": "1"}', "nonsense", "[" * 100_000):
        path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
        with pytest.raises(UserError, match="metrics.jsonl, line 2: no record of metrics"):
            read_metrics(path)
        with pytest.raises(UserError, match="line 2"):
            MetricsWriter(path, resume_at=5)
    with pytest.raises(UserError, match="cannot be written"):
        MetricsWriter(tmp_path / "absent" / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_sentence(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer._file = open("/dev/full", "ab", buffering=0)
    with pytest.raises(UserError, match="no space left on device while writing .*metrics.jsonl"):
        writer.write({"step": 1})


def test_a_line_is_whole_even_if_the_system_takes_it_in_pieces(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    real = writer._file

    class Slow:
        def write(self, content: bytes) -> int:
            return real.write(content[:5])

    writer._file = Slow()  # type: ignore[assignment]
    writer.write(record(3))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == record(3)
