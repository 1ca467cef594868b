"""Rows from anywhere: tensors or arrays of any number of rows in, batches of one size out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.seeds import generator

Array = Tensor | np.ndarray
Chunk = Array | tuple[Array, Array] | list[Tensor] | list[np.ndarray]
Source = Array | tuple[Array, Array] | Iterable[Chunk]


class Batch(NamedTuple):
    x: Float[Tensor, "rows d_in"]
    y: Float[Tensor, "rows d_out"] | None
    """What is to be reconstructed, where that is something else."""

    def __len__(self) -> int:  # type: ignore[override]
        return self.x.shape[0]


class Rebatched(Iterator[Batch]):
    """Batches of exactly `batch_size` rows, float32 on `device`, in the order that the rows come in.

    source: a tensor or numpy array of rows, or a pair (x, target) of them, which are taken again and again in random
    orders drawn from `seed`; or anything that gives such rows or pairs, any number of them each time: it is gone
    through again when it ends, if it can be (a list or a DataLoader, not a generator). Numbers are floating-point ones,
    of numpy 16, 32 or 64 bits; an array is not copied as a whole, so that one on disk (`np.load(…, mmap_mode="r")`)
    stays there. What is left over at the end is less than a batch and is dropped. Raises UserError for what is no such
    thing, or of other widths than what came before.
    """

    def __init__(self, source: Source, batch_size: int, device: torch.device | str, seed: int = 0):
        whole = _batch(source) if isinstance(source, Array) or _is_pair(source) else None
        self.rows = None if whole is None else len(whole)
        """How many there are; None: as many as come."""
        self.batch_size, self.device = batch_size, device
        self._chunks = _repeated(source) if whole is None else _permuted(whole, batch_size, seed)
        self._waiting: list[Batch] = []
        self._kept = 0
        self._shape: tuple[int, int | None] | None = None

    def peek(self, rows: int) -> Batch:
        """The first `rows` rows, or all there are, which will still be served."""
        self._fill(rows)
        return _joined(self._waiting, rows)

    def __next__(self) -> Batch:
        self._fill(self.batch_size)
        if self._kept < self.batch_size:
            raise StopIteration
        batch = _joined(self._waiting, self.batch_size)
        left, wanted = [], self.batch_size
        for chunk in self._waiting:
            if wanted < len(chunk):
                left.append(_slice(chunk, wanted))
            wanted = max(0, wanted - len(chunk))
        self._waiting, self._kept = left, self._kept - self.batch_size
        return batch

    def _fill(self, rows: int) -> None:
        while self._kept < rows:
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            batch = _batch(chunk)
            shape = (batch.x.shape[1], None if batch.y is None else batch.y.shape[1])
            if self._shape not in (None, shape):
                raise UserError(f"rows of widths {_widths(shape)} come after rows of widths {_widths(self._shape)}.")
            self._shape = shape
            if len(batch):
                x, y = (None if t is None else t.detach().to(self.device, torch.float32) for t in batch)
                assert x is not None
                self._waiting.append(Batch(x, y))
                self._kept += len(batch)


def _is_pair(value: Any, kind: type = tuple) -> bool:
    return isinstance(value, kind) and len(value) == 2 and all(isinstance(part, Array) for part in value)


def _batch(chunk: Any) -> Batch:
    """One chunk; a list of two is a pair too, as a DataLoader has it."""
    if isinstance(chunk, tuple | list) and len(chunk) == 1:  # as a DataLoader over a TensorDataset of rows has them
        chunk = chunk[0]
    x, y = chunk if _is_pair(chunk) or _is_pair(chunk, list) else (chunk, None)
    if not isinstance(x, Array):
        raise UserError(
            f"rows are tensors or numpy arrays, or pairs of them (x, target), but {type(chunk).__name__} came."
        )
    batch = Batch(_tensor(x), None if y is None else _tensor(y))
    if batch.y is not None and len(batch.x) != len(batch.y):
        raise UserError(f"x and target must have the same number of rows, but have {len(batch.x)} and {len(batch.y)}.")
    return batch


def _tensor(rows: Array) -> Float[Tensor, "rows width"]:
    """Checked; an array's own numbers, where torch can have them so."""
    array = isinstance(rows, np.ndarray)
    real = rows.dtype.kind == "f" and rows.dtype.itemsize <= 8 if array else rows.is_floating_point()
    if rows.ndim != 2 or not real:
        kind = str(rows.dtype).removeprefix("torch.")
        raise UserError(
            f"rows are [rows, width] of floating-point numbers{' of 16, 32 or 64 bits' if array else ''}, but "
            f"{'an array' if array else 'a tensor'} of shape {list(rows.shape)} and {kind} came."
        )
    if not array:
        return rows
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        try:
            return torch.from_numpy(rows)
        except (TypeError, ValueError):  # an order of bytes or of rows that torch does not have
            return torch.from_numpy(np.array(rows, rows.dtype.newbyteorder("="), order="C"))


def _permuted(rows: Batch, at_a_time: int, seed: int) -> Iterator[Chunk]:
    n = len(rows)
    epoch = 0
    while n:
        order = torch.randperm(n, generator=generator(seed, "rows", epoch)).to(rows.x.device)
        for index in order.split(at_a_time):
            yield rows.x[index] if rows.y is None else (rows.x[index], rows.y[index])
        epoch += 1


def _repeated(source: Iterable[Any]) -> Iterator[Any]:
    try:
        again = iter(source)
    except TypeError:
        raise UserError(
            f"rows are tensors or numpy arrays, or something that gives them, and no {type(source).__name__}."
        ) from None
    while True:
        empty = True
        for chunk in again:
            empty = False
            yield chunk
        if empty or iter(source) is again or iter(source) is source:  # nothing more comes of it
            return
        again = iter(source)


def _slice(chunk: Batch, start: int) -> Batch:
    return Batch(chunk.x[start:], None if chunk.y is None else chunk.y[start:])


def _joined(chunks: list[Batch], rows: int) -> Batch:
    if not chunks:
        raise UserError("there are no rows.")
    x, n = [], 0
    for chunk in chunks:
        if n >= rows:
            break
        x.append(chunk)
        n += len(chunk)
    targets = [chunk.y for chunk in x if chunk.y is not None]
    return Batch(torch.cat([chunk.x for chunk in x])[:rows], torch.cat(targets)[:rows] if targets else None)


def _widths(shape: tuple[int, int | None] | None) -> str:
    return " and ".join(str(width) for width in shape or () if width is not None)
