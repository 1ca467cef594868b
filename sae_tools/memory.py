"""Memory that a training loop frees and takes again in every step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed instead of handing it back to the system; True where that worked.

    By default blocks above some MiB are mapped afresh each time, and the kernel zeroes every page of them again: with
    the activations of a small language model that took 40 % of a training step on the CPU. The process's memory then
    stays at its peak (until `release_freed_memory`), so commands call this, the library does not. Elsewhere than on
    glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (musl has none)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in settings])


def release_freed_memory() -> bool:
    """Hands what malloc keeps of freed memory back to the system; True where that worked (glibc).

    For between the phases of a job, which allocate in other sizes: each would otherwise leave holes that the next one
    cannot use, and the process would grow by them.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True
