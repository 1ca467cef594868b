"""One writer at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sae_tools.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def take_lock(folder: Path) -> int | None:
    """A descriptor of `folder/.lock`, held until it is closed, or until the process ends, however it ends.

    None where there are no locks. Raises UserError if another process holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{folder} is being written by another process; wait for it or stop it.") from None
        return None  # a file system without locks
    return descriptor


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if it is missing, while open. UserError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = take_lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)
