"""The peers' environment, .venv-peers: made on first use, so that all contenders run side by side.

It holds what requirements.lock pins, the peers of peers-requirements.txt without their dependencies, and sae_tools
itself, editable; but no triton of its own, which sparsify would use on a CPU too (torch brings it where there is CUDA).
Nothing here needs more than the standard library.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PEERS = ROOT / ".venv-peers"
LOCK, EXTRA = ROOT / "requirements.lock", ROOT / "scripts" / "bench" / "peers-requirements.txt"
READY = PEERS / ".ready"


def fingerprint() -> str:
    """Of all that decides what is installed."""
    files = (LOCK, EXTRA, ROOT / "pyproject.toml")
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def is_ready() -> bool:
    return READY.is_file() and READY.read_text() == fingerprint()


def python() -> Path:
    return PEERS / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make() -> None:
    """Make or renew the environment, which takes minutes and 2 GB. SystemExit with one sentence where it cannot be."""
    print(f"Making the peers' environment in {PEERS} (minutes, 2 GB).", file=sys.stderr)
    wanted = PEERS / "requirements.txt"
    pip = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands = [
        [*pip, "--requirement", str(wanted)],
        [*pip, "--no-deps", "--requirement", str(EXTRA)],
        [*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    ]
    if not python().exists():
        commands.insert(0, [sys.executable, "-m", "venv", str(PEERS)])
    PEERS.mkdir(exist_ok=True)
    wanted.write_text("".join(line for line in LOCK.read_text().splitlines(True) if not line.startswith("triton==")))
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()
            why = lines[-1] if lines else f"exit status {done.returncode}"
            raise SystemExit(f"The peers' environment could not be made in {PEERS} (no network?): {why}")
    READY.write_text(fingerprint())


def enter() -> None:
    """Go on in the peers' environment: run this very command again with its interpreter, if it is not the one running.

    Call it before anything heavy is imported.
    """
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
    if Path(sys.prefix).resolve() == PEERS.resolve():
        return
    if not is_ready():
        make()
    sys.stdout.flush()
    os.execv(python(), [str(python()), *sys.argv])
