"""Commands that are killed, and what is compared once they have been run again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.training.run import run_job

DRIVER = Path(__file__).parent / "kill_at.py"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)


def killed(where: str, n: int, *arguments: str | Path) -> None:
    """`sae-train` (or `sae-store`: kill_at.py) in a process of its own, which dies there."""
    done = command(str(DRIVER), where, str(n), *map(str, arguments))
    assert done.returncode == -signal.SIGKILL, done.stderr


def resume(run: Path) -> dict[str, object]:
    """To the end, in this process; what the run then holds."""
    run_job(load_config(JobConfig, run / "config.yaml"), resume=run)
    return contents(run)


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
