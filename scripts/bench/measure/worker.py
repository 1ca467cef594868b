"""A contender in a process of its own, which does its work when told to.

Contenders then run in turn without sharing what a process has only one of: malloc's settings, threads, peak memory.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

Work = dict[str, Callable[[], Any]]


class Worker:
    """Forks at once; `build` runs in the child and says what it can do. Use it as a context manager.

    Make all workers before this process has computed anything on several threads, which do not survive a fork.
    """

    def __init__(self, build: Callable[[], Work]):
        self._pipe, child = multiprocessing.Pipe()
        self._pid = os.fork()
        if not self._pid:
            self._pipe.close()
            serve(child, build)
        child.close()

    def do(self, name: str) -> Any:
        """What the work of that name returns. RuntimeError with the child's traceback where it raises."""
        self._pipe.send(name)
        try:
            result, error = self._pipe.recv()
        except EOFError:
            result, error = None, "the process died"
        if error is not None:
            raise RuntimeError(error)
        return result

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        os.waitpid(self._pid, 0)


def serve(pipe: Any, build: Callable[[], Work]) -> None:
    """The child's whole life: until the other end is closed."""
    try:
        work = None
        while True:
            name = pipe.recv()
            try:
                work = work or build()
                pipe.send((work[name](), None))
            except Exception:
                pipe.send((None, traceback.format_exc()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        os._exit(0)
