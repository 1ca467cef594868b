"""What every command shares: a user's mistake is one sentence and exit status 2; Ctrl-C ends in order."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import typer

from sae_tools.errors import UserError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of shells: 128 + SIGINT."""


def run_command(app: typer.Typer, name: str) -> NoReturn:
    """Run a Typer app as the command `name` and exit.

    0: done; 1: a traceback, which is a bug of ours; 2: the user's mistake, one sentence on stderr; 130: interrupted;
    other numbers by `raise typer.Exit(number)`.
    """
    share_cores()
    try:
        command = typer.main.get_command(app)
        command.invoke = _keeping_interrupts(command.invoke)
        result = command.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _fail(name, str(error))
    except (KeyboardInterrupt, _Interrupted):
        print(f"{name}: interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `sae-train --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(name, f"no space left on device{f' while writing {error.filename}' if error.filename else ''}.")
    except Exception as error:
        message = getattr(error, "format_message", None)  # what the parser of the command line raises has one
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else name
        _fail(name, f"{str(message()).rstrip('.')} (see {path} --help).")
    sys.exit(result if isinstance(result, int) else 0)


def share_cores() -> None:
    """Let torch's threads (GNU OpenMP) wait only briefly by spinning, unless the user has said how they should wait.

    By default they spin for long, so that any other work on the machine starves them: on two cores shared with others
    the quickstart's job ran 2.3 times as fast so (40,000 tokens, one run each), on a quiet machine at 0.96 of its
    speed (80,000 tokens, two runs each).
    Has an effect only before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


class _Interrupted(BaseException):
    """KeyboardInterrupt under a name that Typer does not catch; versions differ in what they make of it."""


def _keeping_interrupts(invoke: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(context: Any) -> Any:
        try:
            return invoke(context)
        except KeyboardInterrupt as interrupt:
            raise _Interrupted from interrupt

    return wrapped


def _fail(name: str, sentence: str) -> NoReturn:
    print(f"{name}: {sentence}", file=sys.stderr)
    sys.exit(2)


class StopSignals:
    """While entered, the first Ctrl-C or SIGTERM only asks to stop; the second stops at once (KeyboardInterrupt).

    with StopSignals() as stop:
        run(..., should_stop=stop.requested)
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        return self._requested

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        # os.write: print could find the stream's lock held by the very code that was interrupted.
        os.write(2, b"\nStopping as soon as the state is saved; once more stops at once, without that.\n")
