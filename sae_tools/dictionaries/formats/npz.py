"""NumPy's .npz files, read without NumPy's reader and without pickle.

Such a file is a zip archive with an .npy file for each array: a header of text that says type, order and shape, then
the numbers. The header is matched against the one form that NumPy writes and never evaluated; what it declares has to
be as large as the archive says its entry is, to the byte, and the entries no larger than the archive can hold.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sae_tools.dictionaries.formats.files import Declared, size_of, untrusted

KIND = "archive of arrays as numpy.savez writes"
TYPES = {"<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16, "<i8": torch.int64, "<i4": torch.int32}
HEADER = re.compile(
    r"\{'descr': (?P<type>'[^']{1,20}'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>|\d{1,15},|(?:\d{1,15}, ){1,7}\d{1,15})\), \} *\n"
)
LONGEST_HEADER = 10_000
MOST_ENTRIES = 100
DENSEST = 8
"""Uncompressed bytes for each of the archive's: weights do not compress to an eighth, archives that are bombs do."""
SMALL = 2**20
"""Bytes that the entries may have whatever the archive's size: small arrays of zeros are no bomb."""
CHUNK = 2**24


class Array(NamedTuple):
    """An entry as it describes itself."""

    entry: zipfile.ZipInfo
    start: int
    """Where its numbers begin."""
    dtype: torch.dtype | None
    shape: list[int]
    fortran: bool


class NpzFile:
    """An .npz file on disk: names to tensors."""

    def __init__(self, path: Path):
        self.path = path
        size = size_of(path)
        with untrusted(path, KIND), zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise ValueError(f"more than {MOST_ENTRIES} entries")
            if len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("two entries of one name")
            for entry in entries:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("a compression that numpy does not use")
                if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
                    raise ValueError("an entry of two sizes")
            if sum(entry.compress_size for entry in entries) > size:
                raise ValueError("entries larger than the file")
            if sum(entry.file_size for entry in entries) > max(SMALL, DENSEST * size):
                raise ValueError("entries far larger than the file can hold")
            self._arrays = {entry.filename.removesuffix(".npy"): _described(archive, entry) for entry in entries}

    def declared(self) -> dict[str, Declared]:
        return {name: Declared(array.dtype, array.shape) for name, array in self._arrays.items()}

    def read(self, name: str) -> Tensor:
        array = self._arrays[name]
        assert array.dtype is not None, "asked for after its type was compared"
        with untrusted(self.path, KIND):
            length = math.prod(array.shape) * array.dtype.itemsize
            numbers, at = bytearray(length), 0
            with zipfile.ZipFile(self.path) as archive, archive.open(array.entry) as file:
                file.read(array.start)
                while at < length:  # a chunk at a time, since zipfile makes copies; it compares checksums
                    chunk = file.read(min(CHUNK, length - at))
                    if not chunk:
                        raise ValueError("numbers that end too early")
                    numbers[at : at + len(chunk)] = chunk
                    at += len(chunk)
            flat = torch.frombuffer(numbers, dtype=array.dtype)
            if array.fortran:
                return flat.reshape(array.shape[::-1]).permute(*reversed(range(len(array.shape)))).contiguous()
            return flat.reshape(array.shape)


def _described(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    """By its header. Raises ValueError for what NumPy does not write or what its entry cannot hold."""
    if not entry.filename.endswith(".npy"):
        raise ValueError("an entry that is no array")
    with archive.open(entry) as file:
        start = file.read(8)
        if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2", b"\3"):
            raise ValueError("an entry that is no array")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(file.read(width), "little")
        if not 0 < length <= LONGEST_HEADER:
            raise ValueError("an array without a header of its length")
        header = HEADER.fullmatch(file.read(length).decode("latin-1"))
    if header is None:
        raise ValueError("an array with a header that numpy does not write")
    shape = [int(number) for number in re.findall(r"\d+", header["shape"])]
    dtype = TYPES.get(header["type"].strip("'"))
    begin = 8 + width + length
    if dtype is not None and begin + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError("numbers of another size than declared")
    if dtype is not None and math.prod(shape) == 0:
        raise ValueError("an array of nothing")
    return Array(entry, begin, dtype, shape, header["fortran"] == "True")
