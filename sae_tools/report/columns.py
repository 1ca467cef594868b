"""The container that the page's data travel in: named arrays and JSON, compressed, as base64.

Little-endian throughout: uint32 length of the header; the header, JSON in UTF-8 padded with spaces so that the arrays
begin at a multiple of 8; the arrays, each beginning at a multiple of 8. The header is
`{"arrays": {name: {"dtype": "u2", "shape": [..], "offset": bytes from where the arrays begin}}, "json": {panel: ...}}`.
gzip over it (without a date), which browsers decompress themselves, then base64.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np

from sae_tools.tracking.metrics import finite_or_null

DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
"""What JavaScript has typed arrays for."""
LEVEL = 6
"""Of gzip: on the quickstart's report (10 MB before it) 9 takes twice as long for 0.2 % less, 1 a third as long for
2.2 % more."""


def pack(arrays: dict[str, np.ndarray], values: dict[str, Any]) -> bytes:
    """The container, not compressed.

    arrays: by `panel.array`, of a dtype in DTYPES (ValueError otherwise). values: JSON-able by panel; numbers that are
    not finite become null.
    """
    described, parts, offset = {}, [], 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array, dtype=np.asarray(array).dtype.newbyteorder("<"))
        kind = array.dtype.str[1:]
        if kind not in DTYPES:
            raise ValueError(f"{name} has dtype {array.dtype}, which the page cannot read")
        described[name] = {"dtype": kind, "shape": list(array.shape), "offset": offset}
        content = array.tobytes()
        parts += [content, bytes(-len(content) % 8)]
        offset += len(content) + -len(content) % 8
    header = dump({"arrays": described, "json": values})
    header += b" " * (-(4 + len(header)) % 8)
    return b"".join([len(header).to_bytes(4, "little"), header, *parts])


def unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inverse of `pack`, as the page reads it; the arrays are read-only."""
    length = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + length])
    arrays = {}
    for name, entry in header["arrays"].items():
        count = int(np.prod(entry["shape"], dtype=np.int64))
        at = 4 + length + entry["offset"]
        arrays[name] = np.frombuffer(content, f"<{entry['dtype']}", count, at).reshape(entry["shape"])
    return arrays, header["json"]


def encode(content: bytes) -> str:
    """gzip, then base64. Releases the interpreter while it compresses, so threads pay."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # 16: gzip, its date and name left empty
    return base64.b64encode(compressor.compress(content) + compressor.flush()).decode()


def decode(text: str) -> bytes:
    """The inverse of `encode`."""
    return zlib.decompress(base64.b64decode(text), 16 + zlib.MAX_WBITS)


def dump(value: Any) -> bytes:
    """JSON in ASCII, the same bytes for the same value: lone surrogates survive, and no text can end anything early."""
    return json.dumps(finite_or_null(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def narrow(array: np.ndarray) -> np.ndarray:
    """Non-negative integers in the smallest unsigned dtype that holds them all."""
    largest = int(array.max()) if array.size else 0
    return array.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32)


def quantise(values: np.ndarray, scale: np.ndarray, steps: int) -> np.ndarray:
    """values / scale · steps, rounded: uint16 for 65535 steps, int16 for 32767. Where scale is 0, 0.

    What is not 0 does not become 0, so that an activation stays one.
    """
    values, scale = np.asarray(values, np.float64), np.asarray(scale, np.float64)
    unit = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0) * steps
    rounded = np.rint(unit)
    rounded = np.where((rounded == 0) & (unit != 0), np.sign(unit), rounded)
    return np.clip(rounded, -steps, steps).astype(np.uint16 if steps > 2**15 else np.int16)
