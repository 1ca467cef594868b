"""A run killed by SIGKILL and resumed ends as one that never stopped: same weights, density counts and metrics."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.training.run import run_job
from tests.jobs import write_job
from tests.training.resuming import DRIVER, command, contents, killed, resume


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def uninterrupted(job: Path) -> dict[str, object]:
    return contents(run_job(load_config(JobConfig, job, ["name=whole"])).run.path)


# The job has 24 steps of 4 dictionaries, fills of 640 rows of about 6 forward passes (after 4 for the estimates), and
# writes 4 checkpoints, each of many renames: the first are of the configuration and of the checkpoint at the start.
KILLS = [("harvest", 3), ("harvest", 9), ("harvest", 22), ("step", 50), ("step", 93)]
KILLS += [("write", n) for n in (3, 9, 17, 30)]


@pytest.mark.parametrize(("where", "n"), KILLS)
def test_a_killed_run_ends_as_if_it_had_not_been(job: Path, uninterrupted, where: str, n: int):
    name = f"{where}-{n}"
    killed(where, n, job, f"name={name}")
    after = resume(job.parent / "runs" / name)
    assert after.keys() == uninterrupted.keys()
    assert [key for key in uninterrupted if after[key] != uninterrupted[key]] == []


def test_killed_twice(job: Path, uninterrupted):
    run = job.parent / "runs" / "twice"
    killed("step", 60, job, "name=twice")
    killed("step", 30, "--resume", run)
    assert resume(run) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_says_how_to_resume(job: Path, uninterrupted, number: int):
    name = f"signal-{int(number)}"
    stopped = command(str(DRIVER), f"signal-{int(number)}", "54", str(job), f"name={name}")
    run = job.parent / "runs" / name
    assert f"sae-train --resume {run}" in stopped.stderr, stopped.stderr
    assert stopped.returncode == 130 and "Traceback" not in stopped.stderr
    assert (run / "acts" / "checkpoints" / str(14 * 128) / "sae_weights.safetensors").exists()
    after = resume(run)
    # The extra checkpoint is there; everything else is as if nothing had happened.
    extra = [key for key in after if key not in uninterrupted]
    assert extra and all(f"/{14 * 128}/" in key for key in extra)
    same = [key for key in uninterrupted if key in after and key != "files"]
    assert [key for key in same if after[key] != uninterrupted[key]] == []


def test_one_seed_one_run(job: Path, uninterrupted):
    """In a process of its own, so that nothing in this one's memory can make them equal; and another seed differs."""
    assert command("-m", "sae_tools.cli.train", str(job), "name=again").returncode == 0
    assert contents(job.parent / "runs" / "again") == uninterrupted
    other = contents(run_job(load_config(JobConfig, job, ["name=other", "seed=1"])).run.path)
    weights = [key for key in uninterrupted if key.endswith("3072/sae_weights.safetensors:W_enc")]
    assert len(weights) == 4 and all(other[key] != uninterrupted[key] for key in weights)
