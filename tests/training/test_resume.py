"""A run killed by SIGKILL and resumed ends as one that never stopped: same weights, density counts and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.jobs import write_job

DRIVER = Path(__file__).parent / "kill_at.py"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)


def sae_train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return command("-m", "sae_tools.cli.train", *map(str, arguments))


def contents(run: Path) -> dict[str, object]:
    """Everything a run leaves behind, without what may differ: times and the run's own name."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():
                found[f"{path.relative_to(run)}:{name}"] = file.get_tensor(name).tobytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{key: value for key, value in line.items() if key != "time"} for line in lines]
    fidelity = json.loads((run / "analysis" / "fidelity.json").read_text())
    for entry in fidelity.values():
        entry.pop("tokens_per_s")
    found["fidelity"] = fidelity
    found["files"] = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def uninterrupted(job: Path) -> dict[str, object]:
    done = sae_train(job, "name=whole")
    assert done.returncode == 0, done.stderr
    return contents(job.parent / "runs" / "whole")


# The job has 24 steps of 4 dictionaries, fills of 640 rows of about 6 forward passes (after 4 for the estimates), and
# writes 4 checkpoints, of which each takes several renames.
@pytest.mark.parametrize(
    ("where", "n"),
    [("harvest", 3), ("harvest", 7), ("harvest", 22), ("step", 1), ("step", 50), ("step", 93)]
    + [("write", n) for n in (2, 4, 8, 13, 17, 19, 30)],
)
def test_a_killed_run_ends_as_if_it_had_not_been(job: Path, uninterrupted, where: str, n: int):
    name = f"{where}-{n}"
    killed = command(str(DRIVER), where, str(n), str(job), f"name={name}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = job.parent / "runs" / name
    resumed = sae_train("--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    after = contents(run)
    assert after.keys() == uninterrupted.keys()
    different = [key for key in uninterrupted if after[key] != uninterrupted[key]]
    assert not different


def test_killed_twice(job: Path, uninterrupted):
    run = job.parent / "runs" / "twice"
    assert command(str(DRIVER), "step", "60", str(job), "name=twice").returncode == -signal.SIGKILL
    assert command(str(DRIVER), "step", "30", "--resume", str(run)).returncode == -signal.SIGKILL
    assert sae_train("--resume", run).returncode == 0
    assert contents(run) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_says_how_to_resume(job: Path, uninterrupted, number: int):
    name = f"signal-{int(number)}"
    code = (
        "import os, signal, sys\n"
        "from sae_tools.training import trainee\n"
        "step, calls = trainee.training_step, [0]\n"
        "def counting(*a, **k):\n"
        "    calls[0] += 1\n"
        f"    if calls[0] == 54: os.kill(os.getpid(), {int(number)})\n"
        "    return step(*a, **k)\n"
        "trainee.training_step = counting\n"
        "from sae_tools.cli.train import main\n"
        f"sys.argv = ['sae-train', {str(job)!r}, 'name={name}']\n"
        "main()\n"
    )
    stopped = command("-c", code)
    run = job.parent / "runs" / name
    assert f"sae-train --resume {run}" in stopped.stderr, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert (run / "acts" / "checkpoints" / str(14 * 128) / "sae_weights.safetensors").exists()
    assert sae_train("--resume", run).returncode == 0
    after = contents(run)
    # The extra checkpoint is there; everything else is as if nothing had happened.
    extra = [key for key in after if key not in uninterrupted]
    assert extra and all(f"/{14 * 128}/" in key for key in extra)
    assert [key for key in uninterrupted if key != "files" and after[key] != uninterrupted[key]] == []


def test_one_seed_one_run(job: Path, uninterrupted):
    assert sae_train(job, "name=again").returncode == 0
    assert contents(job.parent / "runs" / "again") == uninterrupted
    assert sae_train(job, "name=other", "seed=1").returncode == 0
    other = contents(job.parent / "runs" / "other")
    weights = [key for key in uninterrupted if key.endswith("sae_weights.safetensors:W_enc")]
    assert weights and all(other[key] != uninterrupted[key] for key in weights)
