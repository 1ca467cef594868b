"""Files and folders that appear whole or not at all, whatever kills the process or fills the disk.

Everything is written beside its place under a name that starts with `.tmp-`, forced to disk, then renamed. What a
killed process leaves is only ever such a name; `remove_leftovers` removes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_tools.errors import UserError

TEMPORARY = ".tmp-"
_UMASK = os.umask(0)  # only by setting it can it be read
os.umask(_UMASK)


class NoSpaceError(UserError):
    """The disk, or the user's share of it, is full."""


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path`, replacing what is there. Raises UserError where no space is left."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys and a checksum, which `read_json` checks; value: a dict without the key `sha256`."""
    write_text(
        path, json.dumps({**value, "sha256": _checksum(value)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    )


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises UserError for a file that is missing, damaged or from another program."""
    try:
        value = json.loads(path.read_bytes())
        checksum = value.pop("sha256")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        raise UserError(f"{path} is truncated or was not written by sae_tools.") from None
    if checksum != _checksum(value):
        raise UserError(f"{path} is damaged: its checksum is not the one that was written with it.")
    return value


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write; afterwards it takes the place of `path`, which is never half there.

    Raises UserError where the disk is full; on any error `path` keeps what it had.
    """
    temporary = _beside(path)
    with space_on_device_for(path):
        try:
            yield temporary
            # safetensors makes files that nobody but their owner may read, whatever the user's umask says.
            os.chmod(temporary, 0o666 & ~_UMASK)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            _forget(temporary)
            raise


@contextmanager
def creating_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; afterwards it is `path`, whose parents are made, and all its files are on disk.

    An older folder at `path` is removed first. Raises UserError where the disk is full; then nothing has changed.
    """
    temporary = _beside(path)
    with space_on_device_for(path):
        try:
            os.makedirs(path.parent, exist_ok=True)
            os.mkdir(temporary)
            yield temporary
            for folder, _, files in os.walk(temporary):
                for name in files:
                    sync(Path(folder, name))
                sync(Path(folder))
            if path.exists():
                remove_folder(path)
            os.rename(temporary, path)
            sync(path.parent)
        except BaseException:
            _forget(temporary)
            raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that it is gone at once: it is renamed to a temporary name before its files are deleted."""
    doomed = _beside(path)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove what killed processes left unfinished anywhere below `folder`; returns what was removed."""
    found = [
        Path(where, name)
        for where, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if name.startswith(TEMPORARY)
    ]
    for path in found:
        _forget(path)
    return found


@contextmanager
def space_on_device_for(path: Path) -> Iterator[None]:
    """Turn "no space left", from Python or from safetensors, into a UserError that names `path`, not what is in it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, NoSpaceError) and _error_number(error) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"no space left on device while writing {path}; nothing already written is lost, "
            "so make room and continue with --resume."
        ) from None


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors passes it on
    return int(said[1]) if said else None


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}"


def _forget(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
