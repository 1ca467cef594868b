"""Runs `sae-train` in this process and kills it, by SIGKILL, at the n-th call of something. Not a test itself.

    python kill_at.py harvest|step|write N ARGUMENTS…

harvest: a forward pass of the language model for the buffer. step: a training step. write: any rename of a finished
file or folder into its place.
"""

from __future__ import annotations

import os
import signal
import sys


def dying(function, n: int):
    calls = 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapper


def main() -> None:
    where, n, *arguments = sys.argv[1:]
    if where == "harvest":
        from sae_tools.activations.harvest import Harvester

        Harvester.harvest = dying(Harvester.harvest, int(n))
    elif where == "step":
        from sae_tools.training import trainee

        trainee.training_step = dying(trainee.training_step, int(n))
    elif where == "write":
        os.rename, os.replace = dying(os.rename, int(n)), dying(os.replace, int(n))
    else:
        raise SystemExit(f"no place to die called {where}")
    from sae_tools.cli.train import main as sae_train

    sys.argv = ["sae-train", *arguments]
    sae_train()


if __name__ == "__main__":
    main()
