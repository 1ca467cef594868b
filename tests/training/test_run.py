"""What a job leaves behind in the process that ran it, and what it asks of its data before it starts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sae_tools.errors import UserError
from sae_tools.runs.directory import RunDirectory
from sae_tools.training.run import run_job
from tests.jobs import job_config

TAKE_OVER = "import sys; from sae_tools.runs.directory import RunDirectory as R; R.open(sys.argv[1]).drop_after(10**9)"


def open_files(folder: Path) -> list[str]:
    descriptors = Path("/proc/self/fd")
    links = [os.readlink(link) for link in descriptors.iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(folder))]


def test_a_finished_job_lets_go_of_its_run(tmp_path: Path):
    """A notebook that has trained must not keep `sae-train --resume` from the run, nor run out of file descriptors."""
    run = run_job(job_config(tmp_path, training__tokens=256), console=Console(file=io.StringIO())).run.path
    subprocess.run([sys.executable, "-c", TAKE_OVER, str(run)], check=True)
    if Path("/proc/self/fd").is_dir():
        assert open_files(run) == []


def test_a_running_job_keeps_other_processes_out(tmp_path: Path):
    run = RunDirectory.create(tmp_path, "run")
    run.config.write_text("")
    done = subprocess.run([sys.executable, "-c", TAKE_OVER, str(run.path)], capture_output=True, text=True)
    assert done.returncode != 0 and "another process" in done.stderr


def test_held_out_tokens_outside_the_vocabulary_are_one_sentence(tmp_path: Path):
    rows = [{"ids": [(31 * i + j) % 256 for j in range(64)]} for i in range(200)]
    corpus = tmp_path / "tokens.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = job_config(tmp_path, data__source=str(corpus), data__token_column="ids", training__tokens=256)
    run_job(cfg, console=Console(file=io.StringIO()))
    held_out = [row for row in rows if _is_held_out(row["ids"], 0.2)]
    assert held_out
    for row in held_out:
        row["ids"] = _with_1000(row["ids"])
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="1000 is outside the model's vocabulary"):
        run_job(cfg, console=Console(file=io.StringIO()))


def test_a_figure_that_does_not_exist_is_null_in_the_file(tmp_path: Path, monkeypatch):
    """Strict readers of JSON, browsers among them, refuse a bare NaN."""
    monkeypatch.setattr("sae_tools.analysis.fidelity.recovered", lambda *_: float("nan"))
    run = run_job(job_config(tmp_path, training__tokens=256), console=Console(file=io.StringIO())).run
    text = (run.analysis / "fidelity.json").read_text()
    assert json.loads(text)["acts"]["ce_recovered"] == {"zero": None, "mean": None}
    assert "NaN" not in text


def _is_held_out(ids: list[int], share: float) -> bool:
    from sae_tools.data.documents import Document, split_of_document

    return split_of_document(Document("", None, ids), share) == "heldout"


def _with_1000(ids: list[int]) -> list[int]:
    """The document with a token of another vocabulary, and its end changed until it is still held out."""
    for last in range(256):
        changed = [*ids[:40], 1000, *ids[41:-1], last]
        if _is_held_out(changed, 0.2):
            return changed
    raise AssertionError
