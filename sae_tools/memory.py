"""The process's memory: what it holds, what it keeps of what was freed, and when it hands that back."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # <malloc.h>
_LARGE = 16 * 2**20
_MAPPED = 65536  # glibc's default number of blocks that may be mapped at a time

_kept = False


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed instead of handing it back to the system; True where that worked.

    By default blocks above some MiB are mapped afresh each time, and the kernel zeroes every page of them again: with
    the activations of a small language model that took 40 % of a training step on the CPU. The process's memory then
    stays at its peak (but for `phase`), so commands call this, the library does not. Elsewhere than on
    glibc it does nothing.
    """
    global _kept
    _kept = _set((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))
    return _kept


def release_freed_memory() -> bool:
    """Hands what malloc keeps of freed memory back to the system; True where that worked (glibc)."""
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


@contextmanager
def phase() -> Iterator[None]:
    """For parts of a job that allocate in other sizes than the rest, and once: in it large blocks go back to the system
    as soon as they are freed, and before and after it everything that is free does.

    Otherwise each part would leave holes that the next cannot use, and the process would grow by them; and what stays
    of it would stand in the middle of what is free after it.
    """
    release_freed_memory()
    if _kept:
        _set((_M_MMAP_THRESHOLD, _LARGE), (_M_MMAP_MAX, _MAPPED))
    try:
        yield
    finally:
        if _kept:
            _set((_M_MMAP_MAX, 0))
        release_freed_memory()


def _set(*settings: tuple[int, int]) -> bool:
    libc = _glibc()
    return libc is not None and all([libc.mallopt(name, value) == 1 for name, value in settings])


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None)
        for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"):  # musl has the first of them not
            getattr(libc, name)
    except (OSError, AttributeError):
        return None
    return libc


def resident_bytes(*, peak: bool = False) -> int:
    """Resident memory of this process, or the most that it ever was; 0 where the system does not tell (not Linux)."""
    if not sys.platform.startswith("linux"):
        return 0
    name = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def available_bytes() -> int:
    """What the system says that processes can still take; 0 where it does not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1]) if found else 0
