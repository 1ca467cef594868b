"""Local files as a corpus: text, JSON lines and parquet, also gzip- or zstandard-compressed, and folders of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sae_tools.data.documents import Document, Skipped, Split
from sae_tools.errors import UserError

JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
TEXT = (".txt", ".text", ".md", ".rst", ".py")
COMPRESSED = (".gz", ".zst")
PIECE_CHARACTERS = 1 << 20
"""A text file is one document; a longer one is cut, at line ends where there are any, into documents of this size."""
_SAMPLED_BYTES = 1 << 20
_READ_ERRORS = (OSError, EOFError, zlib.error)


def format_of(path: Path) -> str | None:
    """`json`, `parquet`, `text`, or None where the name does not say."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return "json" if last in JSON_LINES else "parquet" if last in PARQUET else "text" if last in TEXT else None


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, decompressed as its last suffix says."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # pyright: ignore[reportReturnType]
    if path.suffix.lower() == ".zst":
        import zstandard

        # Some writers end a frame per chunk: read across them, as gzip does.
        return zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)  # pyright: ignore[reportReturnType]
    return path.open("rb")


def unreadable(path: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}).")


@dataclass(frozen=True)
class TextFile:
    """A text file: one document, or several where it is long."""

    key: str
    path: Path
    decided: Split | None = None

    def documents(self) -> Iterator[Document | Skipped]:
        broken = _zstd_and(_READ_ERRORS)
        try:
            with open_bytes(self.path) as raw, io.TextIOWrapper(raw, encoding="utf-8") as file:
                for number, piece in enumerate(self._pieces(file)):
                    yield Document(f"{self.key}:{number}", piece)
        except UnicodeDecodeError:
            yield Skipped(self.key)
        except broken as error:
            raise unreadable(self.path, error) from None

    @staticmethod
    def _pieces(file: io.TextIOWrapper) -> Iterator[str]:
        rest = ""
        while chunk := file.read(PIECE_CHARACTERS):
            rest += chunk
            while len(rest) > PIECE_CHARACTERS:
                cut = rest.rfind("\n", 0, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
                yield rest[:cut]
                rest = rest[cut:]
        if rest:
            yield rest


@dataclass(frozen=True)
class JSONLines:
    """A file with one JSON object per line."""

    key: str
    path: Path
    text_column: str
    token_column: str | None
    decided: Split | None = None

    def documents(self) -> Iterator[Document | Skipped]:
        lines = self._lines()
        for number, line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.path}, line {number}: expected a JSON object, but {reason(error)}.") from None
            if not isinstance(row, dict):
                raise UserError(f"{self.path}, line {number}: expected a JSON object, found {type(row).__name__}.")
            yield document_of(
                row, f"{self.key}:{number}", f"{self.path}, line {number}", self.text_column, self.token_column
            )

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        broken = _zstd_and(_READ_ERRORS)
        try:
            with open_bytes(self.path) as raw:
                yield from enumerate(io.BufferedReader(raw, 1 << 20), 1)  # pyright: ignore[reportArgumentType]
        except broken as error:
            raise unreadable(self.path, error) from None


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file, read a few hundred rows at a time."""

    key: str
    path: Path
    text_column: str
    token_column: str | None
    decided: Split | None = None

    def documents(self) -> Iterator[Document | Skipped]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        column = self.token_column or self.text_column
        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                if column not in file.schema_arrow.names:
                    raise missing_column(str(self.path), column, file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=256, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        where = f"{self.path}, row {number}"
                        yield document_of(
                            {column: value}, f"{self.key}:{number}", where, self.text_column, self.token_column
                        )
                        number += 1
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.path, error) from None


def reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.colno}"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it cannot be parsed"


def missing_column(where: str, column: str, found: list[str]) -> UserError:
    return UserError(f"{where}: expected a column {column!r}, found {', '.join(map(repr, found[:8])) or 'none'}.")


def document_of(
    row: dict[str, Any], key: str, where: str, text_column: str, token_column: str | None
) -> Document | Skipped:
    """The document in a row of a table. A null is skipped; anything else of the wrong type raises UserError."""
    column = token_column or text_column
    if column not in row:
        raise missing_column(where, column, list(row))
    value = row[column]
    if value is None:
        return Skipped(key)
    if token_column is None:
        if not isinstance(value, str):
            raise UserError(f"{where}: expected text in column {column!r}, found {type(value).__name__}.")
        return Document(key, value)
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise UserError(f"{where}: expected a list of token ids in column {column!r}, found something else.")
    return Document(key, None, value)


def _zstd_and(errors: tuple[type[BaseException], ...]) -> tuple[type[BaseException], ...]:
    """To be asked before reading begins: a reader that the end of the process closes can no longer import anything."""
    import zstandard

    return (*errors, zstandard.ZstdError)


class FileCorpus:
    """A file, or every file of a known kind under a folder (in the order of their names)."""

    def __init__(self, name: str, text_column: str, token_column: str | None):
        self.name = name
        path = Path(name).expanduser()
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.is_file() and format_of(p) and not p.name.startswith(".")]
            if token_column is not None:
                found = [p for p in found if format_of(p) != "text"]
            if not found:
                kinds = ", ".join((*JSON_LINES, *PARQUET, *TEXT))
                raise UserError(f"{path}: no file with a name that ends in {kinds} (or one of these with .gz or .zst).")
        elif path.is_file():
            found = [path]
        else:
            raise UserError(
                f"data.source: {name!r} does not exist, and it is neither python-stdlib nor python-installed nor "
                "hub:owner/name."
            )
        root = path if path.is_dir() else path.parent
        self.files = found
        self.shards = [self._shard(p, p.relative_to(root).as_posix(), text_column, token_column) for p in found]

    @staticmethod
    def _shard(path: Path, key: str, text_column: str, token_column: str | None) -> TextFile | JSONLines | ParquetFile:
        kind = format_of(path) or "text"
        if kind == "json":
            return JSONLines(key, path, text_column, token_column)
        if kind == "parquet":
            return ParquetFile(key, path, text_column, token_column)
        if token_column is not None:
            raise UserError(f"{path}: a text file has no column {token_column!r} of token ids (data.token_column).")
        return TextFile(key, path)

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        total = 0
        for shard in self.shards:
            try:
                size = os.path.getsize(shard.path)
                digest.update(f"{shard.key}\0{size}\0".encode())
                digest.update(_sample(shard.path, size))
            except OSError as error:
                raise unreadable(shard.path, error) from None
            total += size
        return {"source": self.name, "files": len(self.shards), "bytes": total, "digest": digest.hexdigest()}


def _sample(path: Path, size: int) -> bytes:
    """The first and the last MiB: enough to tell versions of a corpus apart, whatever its size."""
    with path.open("rb") as file:
        head = file.read(_SAMPLED_BYTES)
        file.seek(max(size - _SAMPLED_BYTES, 0))
        return head + file.read(_SAMPLED_BYTES)
