"""safetensors files of our own: tensors, some JSON beside them, and a checksum over both.

The file is an ordinary safetensors file. Its header's metadata has `sae_tools` (the format's version), `meta` (JSON)
and `sha256`, over the names, dtypes, shapes and bytes of the tensors in order of name, and over `meta`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.runs.atomic import replacing

FORMAT = "1"


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None) -> None:
    """Write `tensors` (any device, any layout) and JSON-able `meta`; the file appears whole or not at all.

    Raises UserError where no space is left.
    """
    on_cpu = {name: _own(tensor) for name, tensor in tensors.items()}
    text = json.dumps(meta or {}, sort_keys=True)
    header = {"sae_tools": FORMAT, "meta": text, "sha256": _checksum(on_cpu, text)}
    with replacing(path) as temporary:
        save_file(on_cpu, temporary, metadata=header)
        _sort_metadata(temporary)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, meta) of a file that `save_tensors` wrote.

    Raises UserError for one that is missing, truncated, changed since, or from another program. Sizes that a header
    declares are checked against the file's size before anything is allocated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata())
            # Copies: the file's own pages would be gone if somebody truncated it under us.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    if header["sha256"] != _checksum(tensors, header["meta"]):
        raise UserError(f"{path} is damaged: its checksum is not the one that was written with it.")
    return tensors, json.loads(header["meta"])


def read_meta(path: Path) -> dict[str, Any]:
    """Only `meta`, without reading the tensors (and so without checking them). Raises as load_tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(_header(path, file.metadata())["meta"])
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def _sort_metadata(path: Path) -> None:
    """Equal content makes equal files: safetensors writes the metadata in an order that changes between processes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":")).encode().ljust(size))  # all ASCII, so as long as before


def _header(path: Path, metadata: dict[str, str] | None) -> dict[str, str]:
    if metadata is None or not {"sae_tools", "meta", "sha256"} <= metadata.keys():
        raise UserError(f"{path} was not written by sae_tools: its header has no checksum of ours.")
    if metadata["sae_tools"] != FORMAT:
        raise UserError(f"{path} has format {metadata['sae_tools']}, but this version of sae_tools reads {FORMAT}.")
    return metadata


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist.")
    if isinstance(error, OSError):
        return UserError(f"{path} cannot be read ({error.strerror or error}).")
    return UserError(f"{path} is truncated or no safetensors file ({error}).")


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, on the CPU, and alone in its storage, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.numel():  # which may come from numpy with strides of 0, and then has no bytes to look at
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def _checksum(tensors: dict[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
