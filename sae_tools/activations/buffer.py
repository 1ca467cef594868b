"""The shuffle buffer: filled whole, permuted once, served in batches, resumable from a few numbers.

A fill takes rows from the harvester until the buffer is full. Rows of the last forward pass that do not fit are the
first of the next fill. So a fill is determined by where the stream stood before its first batch of contexts and how
many rows of that batch belong to the fill before; a resumed run harvests that one fill again and goes on, bit for bit
(on CPU with the same number of threads). No activations are ever saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_tools.activations.harvest import Harvester
from sae_tools.activations.mixing import same_document_share
from sae_tools.errors import UserError
from sae_tools.memory import release_freed_memory
from sae_tools.rows import Contexts, Rows
from sae_tools.seeds import generator

EMPTY_BATCHES = 100
"""Batches of contexts in a row without a single row, after which the settings rather than the text must be wrong."""

LAST_FILL = 4
"""The last fill takes at least the capacity divided by this, whatever is still needed."""


class ContextSource(Protocol):
    """An iterator of contexts whose position can be saved as a small JSON-able value and restored."""

    def __next__(self) -> Contexts: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@dataclass
class _Pending:
    """The batch of contexts that is being taken into the buffer."""

    before: dict[str, Any]
    """State of the stream before it."""
    rows: Rows
    taken: int


class ShuffleBuffer(Iterator[Rows]):
    """Iterates batches of exactly `batch_size` rows in float32, freshly allocated; the last batch of a finite stream
    may be smaller. Two buffers over the same stream with the same seed serve the same rows in the same order.

    The buffer owns the stream: nobody else may draw from it.
    """

    def __init__(
        self,
        stream: ContextSource,
        harvester: Harvester,
        *,
        rows: int,
        batch_size: int,
        seed: int,
        device: torch.device | str | None = None,
        total: int | None = None,
    ):
        """rows: capacity, rounded down to whole batches (at least one).
        seed: of the permutations, one per fill, drawn from (seed, "buffer", number of the fill).
        device: where rows are kept and served; default the model's.
        total: rows that will be asked for from the beginning of the stream on, so that the last fill takes no more than
            are still needed; None: unknown.
        """
        self.stream, self.harvester = stream, harvester
        self.batch_size, self.seed, self.total = batch_size, seed, total
        self.capacity = max(1, rows // batch_size) * batch_size
        self.device = torch.device(device) if device is not None else harvester.model.device
        self._store = self._allocate()
        self._order = torch.zeros(0, dtype=torch.int64)
        self._pending: _Pending | None = None
        self._fill = -1
        self._filled = self._served = 0
        self._filling = False
        self._start: dict[str, Any] = {}
        self._digest = ""
        self.same_document = float("nan")
        """Share of same-document pairs among all rows of this fill, which is what a batch drawn from it has on
        average (activations/mixing.py)."""

    def _allocate(self) -> Rows:
        # Zeros, not empty: the memory is really there from the start, and a fill cannot run out of it later.
        # Activations of a half-precision model stay as they are: float32 would hold the same numbers.
        def integers() -> Tensor:
            return torch.zeros(self.capacity, dtype=torch.int64, device=self.device)

        dtype = self.harvester.model.dtype
        activations = {
            site.name: torch.zeros(self.capacity, site.width, dtype=dtype, device=self.device)
            for site in self.harvester.sites
        }
        scale = torch.zeros(self.capacity, device=self.device) if self.harvester.need_scale else None
        return Rows(activations, integers(), integers(), integers(), scale)

    # Serving

    def __next__(self) -> Rows:
        if self._served >= self._filled:
            self._refill()
            if not self._filled:
                raise StopIteration
        chosen = self._order[self._served : self._served + self.batch_size]
        self._served += len(chosen)
        batch = self._store[chosen]
        activations = {name: x.float() for name, x in batch.activations.items()}
        return Rows(activations, batch.tokens, batch.position, batch.document, batch.scale)

    # Filling

    def _position(self) -> dict[str, Any]:
        """Where the next row to be taken stands: the stream's state before its batch of contexts, rows to skip."""
        if self._pending is None:
            return {"stream": self.stream.state_dict(), "skip": 0}
        return {"stream": self._pending.before, "skip": self._pending.taken}

    def _refill(self) -> None:
        self._start, self._fill = self._position(), self._fill + 1
        self._filled, self._served, self._filling = 0, 0, True
        digest, empty, wanted = hashlib.blake2b(digest_size=16), 0, self._wanted()
        while self._filled < wanted:
            if self._pending is None:
                self._pending = self._draw()
                if self._pending is None:
                    break
            rows, taken = self._pending.rows, self._pending.taken
            part = rows[taken : taken + wanted - self._filled]
            self._put(part, digest)
            self._pending.taken += len(part)
            if self._pending.taken >= len(rows):
                self._pending = None
            empty = 0 if len(part) else empty + 1
            if empty >= EMPTY_BATCHES:
                raise UserError(
                    f"{empty} batches of contexts in a row gave no rows: every token is at a left-out position "
                    f"(rows.skip_positions) or special (rows.skip_special)."
                )
        order = torch.randperm(self._filled, generator=generator(self.seed, "buffer", self._fill))
        self._order = order.to(self.device)
        self._digest, self._filling = digest.hexdigest(), False
        self.same_document = same_document_share(self._store.document[: self._filled])
        release_freed_memory()  # text and forward passes leave holes of other sizes than steps need

    def _wanted(self) -> int:
        """Rows of this fill: as many as fit, or as are still needed (every fill before was a whole one), but enough
        for its batches to be mixed."""
        left = self.capacity if self.total is None else self.total - self._fill * self.capacity
        least = -(-self.capacity // self.batch_size // LAST_FILL) * self.batch_size
        return self.capacity if left <= 0 else min(self.capacity, max(left, least))

    def _draw(self) -> _Pending | None:
        before = self.stream.state_dict()
        contexts = next(self.stream, None)  # type: ignore[call-overload]
        return None if contexts is None else _Pending(before, self.harvester.harvest(contexts), 0)

    def _put(self, rows: Rows, digest: Any) -> None:
        self._store.put(self._filled, rows)
        digest.update(rows.tokens.cpu().numpy().tobytes())
        self._filled += len(rows)

    def release(self) -> None:
        """Gives the memory of the rows back. Nothing can be read, saved or described after this."""
        self._store, self._order, self._pending = self._store.empty_like(0), torch.zeros(0, dtype=torch.int64), None

    # State

    def state_dict(self) -> dict[str, Any]:
        """A small JSON-able value, from which a new buffer over the same text goes on with the very next batch."""
        settings = {"seed": self.seed, "batch_size": self.batch_size, "capacity": self.capacity}
        nothing = {"served": 0, "filled": 0, "digest": ""}
        if self._filling:  # interrupted: as if this fill had not begun
            return {**settings, **self._start, "fill": self._fill, **nothing}
        if self._served >= self._filled:  # between two fills
            return {**settings, **self._position(), "fill": self._fill + 1, **nothing}
        return {
            **settings,
            **self._start,
            "fill": self._fill,
            "served": self._served,
            "filled": self._filled,
            "digest": self._digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the stream back and harvests the saved fill again (that much waiting). UserError if the buffer was set
        up otherwise, or if the text is no longer the same."""
        for key, mine in (("seed", self.seed), ("batch_size", self.batch_size), ("capacity", self.capacity)):
            if state[key] != mine:
                raise UserError(f"The saved run's buffer has {key} {state[key]}, but this one has {mine}.")
        self.stream.load_state_dict(state["stream"])
        self._pending, self._fill = None, state["fill"] - 1
        self._filled, self._served, self._filling = 0, 0, False
        if state["skip"]:
            self._pending = self._draw()
            if self._pending is None or len(self._pending.rows) <= state["skip"]:
                raise UserError("The text is not the same as when the run was saved: it ends earlier.")
            self._pending.taken = state["skip"]
        if not state["filled"]:
            return
        self._refill()
        if (self._filled, self._digest) != (state["filled"], state["digest"]):
            raise UserError("The text is not the same as when the run was saved: other tokens came out of it.")
        self._served = state["served"]

    def describe(self) -> dict[str, int]:
        """Truthful sizes. rows: capacity; bytes: what the buffer keeps allocated (activations, tokens, positions,
        documents, scales, permutation); bytes_per_row."""
        kept = [*self._store.activations.values(), self._store.tokens, self._store.position, self._store.document]
        kept += [] if self._store.scale is None else [self._store.scale]
        size = sum(x.untyped_storage().nbytes() for x in kept) + self.capacity * self._order.element_size()
        return {"rows": self.capacity, "bytes": size, "bytes_per_row": size // self.capacity}
