from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.errors import UserError
from sae_tools.runs.density import DensityWindow
from sae_tools.runs.directory import RunDirectory


def test_a_taken_name_gets_the_next_free_number(tmp_path):
    runs = tmp_path / "a" / "runs"
    assert [RunDirectory.create(runs, "job").path.name for _ in range(3)] == ["job", "job-2", "job-3"]
    os.rename(runs / "job-2", runs / "mine")
    (runs / "other").write_text("a file takes a name too")
    assert RunDirectory.create(runs, "job").path.name == "job-2"
    assert RunDirectory.create(runs, "other").path.name == "other-2"


def test_two_that_ask_at_once_get_two(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunDirectory.create(tmp_path, "job").path, range(40)))
    assert len(set(made)) == 40


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such run directory"):
        RunDirectory.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no run of sae_tools: it has no config.yaml"):
        RunDirectory.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no run can be made in .*/file"):
        RunDirectory.create(tmp_path / "file", "job")


def test_the_configuration_is_in_the_run(tmp_path):
    config = JobConfig.model_validate(
        {"dictionaries": {"a": {"site": "x"}}, "provenance": {"versions": {"torch": "2"}}}
    )
    run = RunDirectory.create(tmp_path, "job")
    run.write_config(config)
    assert load_config(JobConfig, RunDirectory.open(str(run.path)).config) == config


def test_a_run_that_never_began_is_removed_and_no_other(tmp_path):
    run = RunDirectory.create(tmp_path, "job")
    run.config.write_text("")
    run.remove_if_unused()
    assert not run.path.exists()
    run = RunDirectory.create(tmp_path, "job")
    run.config.write_text("")
    run.metrics.write_text("")
    run.remove_if_unused()
    assert run.path.exists()


def test_a_resumed_run_drops_windows_past_its_checkpoint(tmp_path):
    run = RunDirectory.create(tmp_path, "job")
    run.config.write_text("")
    run.metrics.write_text("{}\n")
    for i in range(3):
        counts = torch.ones(2, dtype=torch.int64)
        DensityWindow(counts, counts, 10, 10 * i, 10 * i + 10).save(run.density_file("up", i))
    run.drop_after(20)
    assert [p.name for p in run.density_files("up")] == [
        "0000.safetensors",
        "0001.safetensors",
    ] and run.metrics.exists()
    run.drop_after(-1)
    assert run.density_files("up") == [] and not run.metrics.exists() and run.config.exists()


def test_only_one_process_writes_a_run(tmp_path):
    run = RunDirectory.create(tmp_path, "job")
    run.config.write_text("")
    run.release_lock()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", hold, run.path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="is being written by another process"):
            RunDirectory.open(run.path).drop_after(0)
        other.kill()
    RunDirectory.open(run.path).drop_after(0)
