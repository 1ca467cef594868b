"""What flows from text to dictionaries: contexts of tokens, then one row per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Contexts:
    """A batch of packed token sequences."""

    tokens: Int[Tensor, "batch position"]
    """Token ids, int64."""
    document: Int[Tensor, "batch position"]
    """Number of the document that each token belongs to, int64."""


@dataclass(frozen=True)
class Rows:
    """Activations of every site at some tokens, each with the token's context; row i of every field is one token."""

    activations: dict[str, Float[Tensor, "rows d_site"]]
    """By the site's short name, e.g. `mlp_out@3`."""
    tokens: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    """Position in the context, 0 first."""
    document: Int[Tensor, " rows"]
    scale: Float[Tensor, " rows"] | None = None
    """The final norm's scale at the token, sqrt(mean(centred r²) + eps); None where no space asks for it."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Rows:
        """The rows of a slice, a mask, or indices that are not negative."""
        if isinstance(index, Tensor) and index.dtype == torch.int64:
            return self.map(lambda x: x.index_select(0, index))  # gathers rows two to three times as fast as x[index]
        return self.map(lambda x: x[index])

    def to(self, device: torch.device | str) -> Rows:
        """From main memory to a GPU by way of pinned memory, so that the copy runs beside what the GPU is doing and
        nobody waits for it."""
        if torch.device(device).type == "cuda" and self.tokens.device.type == "cpu":
            return self.map(lambda x: x.pin_memory().to(device, non_blocking=True))
        return self.map(lambda x: x.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The same change to every field."""
        return Rows(
            {site: change(x) for site, x in self.activations.items()},
            change(self.tokens),
            change(self.position),
            change(self.document),
            None if self.scale is None else change(self.scale),
        )

    def empty_like(self, rows: int) -> Rows:
        """Memory for so many rows with the same fields."""
        return Rows(
            {site: x.new_empty(rows, x.shape[1]) for site, x in self.activations.items()},
            self.tokens.new_empty(rows),
            self.position.new_empty(rows),
            self.document.new_empty(rows),
            None if self.scale is None else self.scale.new_empty(rows),
        )

    def put(self, start: int, part: Rows) -> None:
        """Copy `part` to the rows that begin at `start`."""
        place = slice(start, start + len(part))
        for site, x in part.activations.items():
            self.activations[site][place] = x
        self.tokens[place], self.position[place], self.document[place] = part.tokens, part.position, part.document
        if self.scale is not None and part.scale is not None:
            self.scale[place] = part.scale

    @staticmethod
    def concatenate(parts: list[Rows]) -> Rows:
        first = parts[0]
        scales = [part.scale for part in parts if part.scale is not None]
        return Rows(
            {site: torch.cat([part.activations[site] for part in parts]) for site in first.activations},
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.position for part in parts]),
            torch.cat([part.document for part in parts]),
            torch.cat(scales) if scales else None,
        )
