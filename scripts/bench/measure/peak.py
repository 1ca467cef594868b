"""Peak resident memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def status_bytes(text: str, field: str) -> int:
    """A field such as VmHWM of /proc/self/status, in bytes. Raises KeyError where it is not there."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


def resident() -> int:
    """Bytes resident now; elsewhere than on Linux the peak so far."""
    if STATUS.exists():
        return status_bytes(STATUS.read_text(), "VmRSS")
    return _rusage()


def peak() -> int:
    """Highest number of resident bytes since `baseline`, or since the process began where that is not possible."""
    return status_bytes(STATUS.read_text(), "VmHWM") if STATUS.exists() else _rusage()


def baseline() -> int:
    """Bytes resident now, with all freed memory given back; from here on `peak` counts anew, where the system lets it
    (Linux)."""
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
    try:
        CLEAR.write_text("5")
    except OSError:
        pass
    return resident()


def _rusage() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forked(work: Callable[[], T]) -> T:
    """What `work` returns, run in a fork of this process: what it takes is given back, what was imported is shared.

    Call it before this process has computed anything on several threads, which do not survive a fork.
    Raises RuntimeError with the traceback where `work` raises or the process dies.
    """
    receive, send = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if not child:
        receive.close()
        status = 1
        try:
            send.send((work(), None))
            status = 0
        except BaseException:
            send.send((None, traceback.format_exc()))
        finally:
            send.close()
            os._exit(status)
    send.close()
    try:
        result, error = receive.recv()
    except EOFError:
        result, error = None, "the process died"
    os.waitpid(child, 0)
    if error is not None:
        raise RuntimeError(error)
    return result  # type: ignore[return-value]  (None only with an error)
