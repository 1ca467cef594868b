"""Reading an activation store in place of a model: batches that are random over the whole store, again and again.

The rows of every shard were permuted before they were written, so a run of consecutive rows, a *piece*, is a random
sample of a whole fill of the writer's buffer, and can be read in one go. In each epoch all pieces of all shards are put
in a seeded order, and cut into windows of equal size. A window is copied from the mapped files into memory, piece by
piece, permuted as a whole and served in batches. So a batch is a random sample of a window, which is a random sample of
the pieces of the whole store; every row is served exactly once in each epoch.

What is mixed how well: with F rows in the writer's fills, N in the store, W in a window and P in a piece, two rows of a
batch come from one fill with a probability of about F/N, as if all had been shuffled together, plus P/W, which is what
reading in pieces costs; P/W is at most 1/64 (PIECES). Within a fill, rows are mixed perfectly. If the whole store fits
into one window, so is everything.

A position is three numbers (epoch, window, rows served of it); a resumed run reads one window again.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_tools.activations.mixing import same_document_share
from sae_tools.activations.store import Store
from sae_tools.activations.store_shards import shard_name
from sae_tools.errors import UserError
from sae_tools.rows import Rows
from sae_tools.seeds import generator

PIECE_BYTES = 2**20
"""About the size of a piece: large enough that reading is not slower than in order."""
PIECES = 64
"""Pieces in a window, at least, however small that makes them."""
POSITION = ("epoch", "at", "served")
"""What a saved state says of where the reader stood: in which window, and how many rows it had served of it."""


class _Part(NamedTuple):
    """Consecutive rows of a shard."""

    shard: int
    start: int
    stop: int


class StoreReader(Iterator[Rows]):
    """Iterates batches of exactly `batch_size` rows in float32 on the CPU, freshly allocated, endlessly; with `epochs`
    the last batch may be smaller. Two readers of one store with the same settings serve the same rows in the same
    order. A batch may span two epochs (where the rows are no multiple of its size)."""

    def __init__(
        self,
        store: Store,
        sites: Sequence[str] | None = None,
        *,
        rows: int,
        batch_size: int,
        seed: int,
        need_scale: bool | None = None,
        epochs: int | None = None,
    ):
        """sites: which activations to read, by site name; None: all. need_scale: None: if the store has it.
        rows: at most so many rows are in memory at a time (the window).
        epochs: passes over the store; None: endless.
        """
        self.store, self.batch_size, self.seed, self.epochs = store, batch_size, seed, epochs
        layout = store.plan.layout
        chosen = list(dict.fromkeys(layout.widths if sites is None else sites))
        self._columns = {f"activations.{site}": site for site in chosen}
        self._names = [*self._columns, "tokens", "position", "document"]
        if layout.scale if need_scale is None else need_scale:
            self._names.append("scale")
        self.windows = -(-store.rows // rows)
        self.window_rows = -(-store.rows // self.windows)
        self.piece_rows = max(1, min(PIECE_BYTES // layout.row_bytes, self.window_rows // PIECES))
        # Zeros, not empty: the memory is really there from the start.
        self._window = {
            name: torch.zeros(self.window_rows, *(() if width is None else (width,)), dtype=dtype)
            for name, (dtype, width) in layout.columns.items()
            if name in self._names
        }
        self._raw = {
            name: x.view(self.window_rows, -1).view(torch.uint8).numpy().reshape(-1) for name, x in self._window.items()
        }
        self._order = torch.zeros(0, dtype=torch.int64)
        self._epoch, self._at = 0, -1
        self._filled = self._served = 0
        self._unfinished: tuple[int, int, int] | None = None
        """(epoch, window, rows served of it) before the batch that is being put together, or of the position that is
        being gone to: where an interrupted reader stands, whatever is in memory by then."""
        self._pieces: tuple[int, np.ndarray, np.ndarray] | None = None
        self.same_document = float("nan")
        """Share of same-document pairs among the rows of this window, which a batch of it has on average."""

    @property
    def columns(self) -> list[str]:
        """What is read of each row, by the names that the store's files give it."""
        return self._names

    @property
    def epoch(self) -> int:
        """Passes over the text that were completed before the rows now served, as of ContextStream: a store may hold
        several, and serves them mixed."""
        return (self._position()[0] + 1) * self.store.manifest.text_passes - 1

    # Serving

    def __next__(self) -> Rows:
        if self._unfinished is not None:
            self._go_to(*self._unfinished)
        self._unfinished = (self._epoch, self._at, self._served)
        parts: list[Rows] = []
        missing = self.batch_size
        while missing and (self._served < self._filled or self._next_window()):
            parts.append(self._take(min(missing, self._filled - self._served)))
            missing -= len(parts[-1])
        batch = Rows.concatenate(parts) if len(parts) > 1 else parts[0] if parts else None
        self._unfinished = None
        if batch is None:
            raise StopIteration
        return batch

    def _take(self, count: int) -> Rows:
        index = self._order[self._served : self._served + count]
        self._served += count
        found = {name: x.index_select(0, index) for name, x in self._window.items()}
        return Rows(
            {site: found[column].float() for column, site in self._columns.items()},
            found["tokens"].long(),
            found["position"].long(),
            found["document"],
            found.get("scale"),
        )

    # Reading

    def _next_window(self) -> bool:
        epoch, at = (self._epoch, self._at + 1) if self._at + 1 < self.windows else (self._epoch + 1, 0)
        if self.epochs is not None and epoch >= self.epochs:
            return False
        self._load(epoch, at)
        return True

    def _go_to(self, epoch: int, at: int, served: int) -> None:
        """To a position, at −1 before the first window. Interrupted on the way, the reader counts as being there."""
        self._unfinished = (epoch, at, served)
        if at >= 0:
            self._load(epoch, at)
        else:
            self._epoch, self._at, self._filled = epoch, at, 0
        self._served = served
        self._unfinished = None

    def _load(self, epoch: int, at: int) -> None:
        """Bring a window into memory, ready to be served from its first row; tell the system which is next."""
        self._filled = self._served = 0
        parts = self._parts(epoch, at)
        self._expect(parts)
        place = 0
        for shard, of_shard in groupby(parts, key=lambda part: part.shard):
            place = self._copy(shard, list(of_shard), place)
        self._order = torch.randperm(place, generator=generator(self.seed, "store", epoch, "rows", at))
        self._epoch, self._at, self._filled = epoch, at, place
        self.same_document = same_document_share(self._window["document"][:place])
        if at + 1 < self.windows:
            self._expect(self._parts(epoch, at + 1))

    def _parts(self, epoch: int, at: int) -> list[_Part]:
        """The rows of a window, in the order in which they are on disk."""
        pieces, ends = self._order_of_pieces(epoch)
        first, last = self._bounds(at)
        parts = []
        number = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            shard, piece = divmod(int(pieces[number]), self._pieces_of_shard)
            begin = piece * self.piece_rows
            stop = min(begin + self.piece_rows, self.store.plan.rows_of(shard))
            skip = stop - begin - (int(ends[number]) - first)  # what the window before has of it
            count = min(stop - begin - skip, last - first)
            parts.append(_Part(shard, begin + skip, begin + skip + count))
            first, number = first + count, number + 1
        return sorted(parts)

    def _bounds(self, at: int) -> tuple[int, int]:
        """Where a window begins and ends among the rows of an epoch."""
        return self.store.rows * at // self.windows, self.store.rows * (at + 1) // self.windows

    @property
    def _pieces_of_shard(self) -> int:
        return -(-self.store.plan.shard_rows // self.piece_rows)

    def _order_of_pieces(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the pieces in the order of this epoch, rows up to the end of each)."""
        if self._pieces is None or self._pieces[0] != epoch:
            plan, per = self.store.plan, self._pieces_of_shard
            last = plan.rows_of(plan.shards - 1)
            count = (plan.shards - 1) * per + -(-last // self.piece_rows)
            pieces = torch.randperm(count, generator=generator(self.seed, "store", epoch, "pieces")).numpy()
            begins = pieces % per * self.piece_rows
            rows = np.where(pieces // per == plan.shards - 1, last, plan.shard_rows)
            self._pieces = (epoch, pieces, np.cumsum(np.minimum(self.piece_rows, rows - begins)))
        return self._pieces[1:]

    def _copy(self, shard: int, parts: list[_Part], place: int) -> int:
        """Copy parts of one shard into the window from row `place` on; the row after them."""
        file, header, layout = self._file(shard), self.store.headers[shard], self.store.plan.layout
        try:
            with file.open("rb") as opened:
                if os.fstat(opened.fileno()).st_size != header.bytes:  # reading past the end of a mapping would kill us
                    raise UserError(f"{file} has changed since the store was opened: its size is another.")
                with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    whole = np.frombuffer(mapped, np.uint8)
                    for part in parts:
                        for name, raw in self._raw.items():
                            size = layout.bytes_of(name)
                            source, stop = header.offsets[name] + part.start * size, part.stop - part.start
                            raw[place * size : (place + stop) * size] = whole[source : source + stop * size]
                        place += part.stop - part.start
                    del whole  # a mapping cannot be closed while something looks at it
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}).") from None
        return place

    def _expect(self, parts: list[_Part]) -> None:
        """Let the system read ahead what these parts need, while we compute."""
        if not hasattr(os, "posix_fadvise"):
            return
        for shard, of_shard in groupby(parts, key=lambda part: part.shard):
            header, layout = self.store.headers[shard], self.store.plan.layout
            try:
                with self._file(shard).open("rb") as opened:
                    for part in of_shard:
                        for name in self._raw:
                            size = layout.bytes_of(name)
                            begin, length = header.offsets[name] + part.start * size, (part.stop - part.start) * size
                            os.posix_fadvise(opened.fileno(), begin, length, os.POSIX_FADV_WILLNEED)
            except OSError:
                return  # only advice: what is wrong with the file is said when it is read

    def _file(self, shard: int) -> Path:
        return self.store.path / shard_name(shard)

    def release(self) -> None:
        """Gives the memory of the rows back. Nothing can be read, saved or described after this."""
        self._window, self._raw = {}, {}
        self._order = torch.zeros(0, dtype=torch.int64)

    # State

    def _settings(self) -> dict[str, Any]:
        return {
            "store": self.store.fingerprint,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "window": self.window_rows,
            "piece": self.piece_rows,
        }

    def _position(self) -> tuple[int, int, int]:
        return self._unfinished or (self._epoch, self._at, self._served)

    def state_dict(self) -> dict[str, Any]:
        """A small JSON-able value, from which a new reader of the same store goes on with the very next batch; after an
        interrupt, with the one that was interrupted."""
        return {**self._settings(), **dict(zip(POSITION, self._position(), strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position (reading one window). UserError if the reader was set up otherwise, or if its store
        has no such position."""
        for key, mine in self._settings().items():
            if state.get(key) != mine:
                raise UserError(f"The saved run read its store with {key} {state.get(key)}, but this one has {mine}.")
        position: list[Any] = [state.get(key) for key in POSITION]
        if not self._exists(*position):
            found = ", ".join(f"{key} {value}" for key, value in zip(POSITION, position, strict=True))
            raise UserError(
                f"The saved run's place in its store is damaged: there is no {found} among {self.windows:,} windows of "
                f"at most {self.window_rows:,} rows."
            )
        self._go_to(*position)

    def _exists(self, epoch: Any, at: Any, served: Any) -> bool:
        if any(type(x) is not int for x in (epoch, at, served)):
            return False
        if at == -1:
            return epoch == served == 0
        return epoch >= 0 and 0 <= at < self.windows and 0 <= served <= self._bounds(at)[1] - self._bounds(at)[0]

    def describe(self) -> dict[str, int]:
        """Truthful sizes. rows: of the window; bytes: what the reader keeps allocated; bytes_per_row."""
        size = sum(x.untyped_storage().nbytes() for x in self._window.values())
        size += self.window_rows * self._order.element_size()
        return {"rows": self.window_rows, "bytes": size, "bytes_per_row": size // self.window_rows}


def random_rows(
    store: Store, count: int, seed: int, sites: Sequence[str] | None = None, need_scale: bool | None = None
) -> Rows:
    """`count` rows, random over the whole store, each at most once. UserError if it holds fewer."""
    if count > store.rows:
        raise UserError(f"{store.path} holds {store.rows:,} rows, but {count:,} were asked for.")
    reader = StoreReader(store, sites, rows=count, batch_size=count, seed=seed, need_scale=need_scale)
    return next(reader)
