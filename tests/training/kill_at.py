"""Runs `sae-train` in this process and sends it a signal at the n-th call of something. Not a test itself.

    python kill_at.py harvest|harvest-signal-NUMBER|step|write|signal-NUMBER N [sae-store] ARGUMENTS…

harvest: SIGKILL at a forward pass of the language model; harvest-signal-NUMBER: that signal. step: SIGKILL at a
dictionary's training step; signal-NUMBER: that signal. write: SIGKILL at any rename of a finished file or folder into
its place. With `sae-store` before its arguments that command is run instead.
"""

from __future__ import annotations

import os
import signal
import sys


def dying(function, n: int, number: int = signal.SIGKILL):
    calls = 0

    def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return wrapper


def main() -> None:
    where, n, *arguments = sys.argv[1:]
    if where.startswith("harvest"):
        from sae_tools.activations.harvest import Harvester

        number = signal.SIGKILL if where == "harvest" else int(where.removeprefix("harvest-signal-"))
        Harvester.harvest = dying(Harvester.harvest, int(n), number)
    elif where == "step" or where.startswith("signal-"):
        from sae_tools.training import trainee

        number = signal.SIGKILL if where == "step" else int(where.removeprefix("signal-"))
        trainee.training_step = dying(trainee.training_step, int(n), number)
    elif where == "write":
        os.rename, os.replace = dying(os.rename, int(n)), dying(os.replace, int(n))
    else:
        raise SystemExit(f"no place to die called {where}")
    from sae_tools.cli import store, train

    name, command = ("sae-store", store) if arguments[:1] == ["sae-store"] else ("sae-train", train)
    sys.argv = [name, *(argument for argument in arguments if argument != "sae-store")]
    command.main()


if __name__ == "__main__":
    main()
