"""One shard of an activation store: a safetensors file of whole rows, and what its header must say before it is used.

Columns, all with a row for each token: `activations.<site> [rows, width]` in the store's dtype, `tokens` and
`position` int32, `document` int64 and, where it was asked for, `scale` float32. The header's checksum (runs/tensors.py)
covers them and `meta`: the store's plan, the shard's number and where the text stood after its last row.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.rows import Rows
from sae_tools.runs.tensors import FORMAT, save_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32", torch.int64: "I64"}
"""safetensors's names of the dtypes that a store holds."""
MAX_HEADER = 64 * 2**20
"""Bytes of a header that are believed; ours have a few thousand."""


def shard_name(number: int) -> str:
    return f"rows-{number:05d}.safetensors"


@dataclass(frozen=True)
class Layout:
    """What a row of a store consists of."""

    widths: dict[str, int]
    """Of the activations, by site."""
    dtype: str
    scale: bool

    @cached_property
    def columns(self) -> dict[str, tuple[torch.dtype, int | None]]:
        """(dtype, numbers in a row; None: one, and no second dimension) of every column by its name in the file."""
        columns: dict[str, tuple[torch.dtype, int | None]] = {
            f"activations.{site}": (DTYPES[self.dtype], width) for site, width in self.widths.items()
        }
        columns |= {"tokens": (torch.int32, None), "position": (torch.int32, None), "document": (torch.int64, None)}
        return columns | ({"scale": (torch.float32, None)} if self.scale else {})

    def bytes_of(self, column: str) -> int:
        """Bytes of one row of a column."""
        dtype, width = self.columns[column]
        return dtype.itemsize * (1 if width is None else width)

    @cached_property
    def row_bytes(self) -> int:
        return sum(self.bytes_of(column) for column in self.columns)


@dataclass(frozen=True)
class ShardHeader:
    rows: int
    bytes: int
    """Of the whole file."""
    sha256: str
    meta: dict[str, Any]
    offsets: dict[str, int]
    """Where in the file each column begins."""


def write_shard(path: Path, rows: Rows, layout: Layout, meta: dict[str, Any]) -> None:
    """Put the rows into a file that appears whole or not at all.

    Raises UserError where no space is left, and for activations that are not finite or do not fit the store's dtype.
    """
    tensors: dict[str, Tensor] = {}
    for site in layout.widths:
        x = rows.activations[site]
        tensors[f"activations.{site}"] = stored = x.to(DTYPES[layout.dtype])
        if not bool(torch.isfinite(stored.sum(dtype=torch.float32))) and not bool(torch.isfinite(stored).all()):
            largest = float(x.abs().max())
            if math.isfinite(largest):
                raise UserError(
                    f"The activations at site '{site}' reach {largest:.3g}, more than {layout.dtype} holds: take "
                    f"--dtype bfloat16 or float32."
                )
            raise UserError(f"The activations at site '{site}' hold NaN or infinite values.")
    tensors |= {"tokens": rows.tokens.int(), "position": rows.position.int(), "document": rows.document.long()}
    if layout.scale:
        assert rows.scale is not None
        tensors["scale"] = rows.scale.float()
    save_tensors(path, tensors, meta)


def read_header(path: Path, layout: Layout) -> ShardHeader:
    """The header of a shard, checked against the layout and the size of the file; no row is read.

    Raises UserError, one sentence with the file's name, for one that is missing, truncated or something else.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise UserError(f"{path} is truncated or no safetensors file.")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged or no safetensors file: its header is no JSON.") from None
    try:
        about = header.pop("__metadata__")
        if about["sae_tools"] != FORMAT:
            raise UserError(f"{path} has format {about['sae_tools']}, but this version of sae_tools reads {FORMAT}.")
        meta, sha256 = json.loads(about["meta"]), str(about["sha256"])
        offsets, rows = _offsets(path, header, layout, 8 + length)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        raise UserError(f"{path} is no part of an activation store of sae_tools.") from None
    end = 8 + length + rows * layout.row_bytes
    if size != end:
        what = "is truncated" if size < end else "is damaged"
        raise UserError(f"{path} {what}: it has {size:,} bytes, but its header says {end:,}.")
    return ShardHeader(rows, size, sha256, meta, offsets)


def _offsets(path: Path, header: dict[str, Any], layout: Layout, base: int) -> tuple[dict[str, int], int]:
    """Where each column begins, and how many rows all of them have. KeyError, TypeError: no such header."""
    if header.keys() != layout.columns.keys():
        different = sorted(header.keys() ^ layout.columns.keys())
        raise UserError(f"{path} has other columns than its store ({', '.join(different)}).")
    rows = _size(header["tokens"]["shape"][0])
    offsets, spans = {}, []
    for column, (dtype, width) in layout.columns.items():
        entry = header[column]
        start, stop = (_size(x) for x in entry["data_offsets"])
        shape = [rows] if width is None else [rows, width]
        if entry["dtype"] != CODES[dtype] or entry["shape"] != shape or stop - start != rows * layout.bytes_of(column):
            found = f"{entry['dtype']} {entry['shape']}"
            raise UserError(f"{path}: {column} is {found}, but its store has {CODES[dtype]} {shape}.")
        offsets[column] = base + start
        spans.append((start, stop))
    spans.sort()
    if rows < 1 or spans[0][0] != 0 or any(a[1] != b[0] for a, b in zip(spans, spans[1:], strict=False)):
        raise UserError(f"{path} is damaged: its columns overlap or leave gaps.")
    return offsets, rows


def _size(x: Any) -> int:
    """A number of rows or bytes as a header declares it: JSON has fractions and infinities too. Raises TypeError."""
    if type(x) is not int or not 0 <= x < 2**63:
        raise TypeError
    return x
