"""Files that anybody may have written: looked at before anything is allocated; what is wrong is a UserError.

Nothing that a file declares is believed. A file of tensors first says which there are, of which type and shape; only
when these are the expected ones are they read.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from sae_tools.errors import UserError

LARGEST_JSON = 16 * 2**20
"""Bytes; a configuration is some kilobytes."""
LARGEST_NUMBER = 2**53
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32}


class Declared(NamedTuple):
    """What a file says of a tensor."""

    dtype: torch.dtype | None
    """None: one that no SAE is stored in."""
    shape: list[int]


class TensorFile(Protocol):
    """An open file of tensors."""

    path: Path

    def declared(self) -> Mapping[str, Declared]: ...

    def read(self, name: str) -> Tensor:
        """A copy, as it was stored."""
        ...


@contextmanager
def untrusted(path: Path, kind: str) -> Iterator[None]:
    """Whatever goes wrong within, a UserError that names the path; kind: what the file should be, such as 'JSON'."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"Cannot read {path}: {one_line(error.strerror or error)}.") from None
    except Exception as error:  # libraries that parse raise much; none of it is a bug of ours to be shown
        raise UserError(f"{path} is truncated or no {kind} ({one_line(error) or type(error).__name__}).") from None


def one_line(text: object, length: int = 100) -> str:
    """The first line of what is unknown, without what a terminal would act on."""
    first = next(iter(str(text).strip().splitlines()), "")[:length].rstrip(".")
    return "".join(c if c.isprintable() else "?" for c in first)


def size_of(path: Path) -> int:
    """Bytes. UserError where there is no regular file that could be opened without waiting for somebody."""
    with untrusted(path, "file"):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"Cannot read {path}: it is {'a folder' if path.is_dir() else 'no regular file'}.")
        return found.st_size


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file."""
    if size_of(path) > LARGEST_JSON:
        raise UserError(f"{path} is larger than {LARGEST_JSON >> 20} MiB, so it is no SAE's configuration.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {one_line(error.strerror or error)}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, and holds a {type(found).__name__}.")
    return found


def section(cfg: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """An object in it; {} where it is missing."""
    found = cfg.get(key, {})
    if not isinstance(found, dict):
        raise UserError(f"{path}: '{key}' must be an object.")
    return found


def positive(cfg: dict[str, Any], key: str, path: Path) -> int:
    """A setting that must be an integer of at least 1, and of a size that something could have."""
    value = cfg.get(key)
    if type(value) is not int or not 1 <= value <= LARGEST_NUMBER:
        raise UserError(f"{path}: '{key}' must be a positive integer, and is {shown(value)}.")
    return value


def flag(cfg: dict[str, Any], key: str, path: Path, default: bool = False) -> bool:
    """A setting that must be true or false; null is the default."""
    value = cfg.get(key)
    if value is not None and type(value) is not bool:
        raise UserError(f"{path}: {key} = {shown(value)} is not supported; expected true or false.")
    return default if value is None else value


def shown(value: object) -> str:
    """What was found, short and on one line."""
    if isinstance(value, bool | float | None) or (isinstance(value, int) and abs(value) <= LARGEST_NUMBER):
        return str(value)
    return "a huge number" if isinstance(value, int) else repr(one_line(value, 50))


class SafetensorsFile:
    """A .safetensors file; its header is checked by safetensors itself, against the file's size too."""

    def __init__(self, path: Path):
        self.path = path
        size_of(path)
        with untrusted(path, "safetensors file"):
            self._file = safe_open(path, framework="pt")

    def declared(self) -> dict[str, Declared]:
        with untrusted(self.path, "safetensors file"):
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            known = FLOATS | INTEGERS
            return {name: Declared(known.get(s.get_dtype()), list(s.get_shape())) for name, s in slices.items()}

    def read(self, name: str) -> Tensor:
        with untrusted(self.path, "safetensors file"):
            # A copy: the file's own pages would be gone if somebody truncated it under us.
            return self._file.get_tensor(name).clone()


def read_tensors(
    file: TensorFile, shapes: Mapping[str, list[int]], says: str, *, optional: Mapping[str, list[int]] | None = None
) -> dict[str, Tensor]:
    """The tensors of these names and shapes, finite, float32 on the CPU.

    says: who declared the shapes, for the sentence, such as 'cfg.json says'. optional: may be missing. Raises UserError
    for anything missing, unexpected, of another shape or type, or not finite, before reading for all that can be seen
    before.
    """
    path, declared = file.path, file.declared()
    expected = {**shapes, **{name: shape for name, shape in (optional or {}).items() if name in declared}}
    for name in sorted(set(declared) ^ set(expected)):
        found = "is missing" if name in expected else "is not expected"
        raise UserError(f"{path}: tensor '{one_line(name, 50)}' {found} for this architecture.")
    for name, shape in expected.items():
        if declared[name].shape != shape:
            found = str(declared[name].shape)[:100]
            raise UserError(f"{path}: {name} has shape {found}, and {says} {shape}.")
        if declared[name].dtype not in FLOATS.values():
            raise UserError(f"{path}: {name} holds something else than finite floating-point numbers.")
    return {name: _finite(file.read(name).float(), name, path) for name in expected}


def read_integers(file: TensorFile, name: str, longest: int = 1000) -> list[int]:
    """A tensor of integers, flattened; [] where it is missing. At most `longest`."""
    found = file.declared().get(name)
    if found is None:
        return []
    if found.dtype not in INTEGERS.values() or len(found.shape) > 1 or not 1 <= (found.shape or [1])[0] <= longest:
        raise UserError(f"{file.path}: {name} must hold a few integers.")
    return file.read(name).flatten().tolist()


def _finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    smallest, largest = torch.aminmax(tensor)  # both NaN where one element is; no copy of its size
    if not bool(torch.isfinite(smallest) & torch.isfinite(largest)):
        raise UserError(f"{path}: {name} holds something else than finite floating-point numbers.")
    return tensor
