"""What edits do to the model's predictions, position by position: cross-entropy and divergence from the original."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_BYTES = 16 * 2**20
"""Bound on each of the few temporaries the size of some contexts' log probabilities."""


class TokenLosses(NamedTuple):
    """Of every token of some contexts."""

    cross_entropy: Float[Tensor, "batch predicted"]
    """-log p(next token) in nats; the last position of a context has no next token."""
    divergence: Float[Tensor, "batch position"]
    """KL(original ‖ edited) in nats, at every position."""


def token_losses(
    logits: Float[Tensor, "batch position vocab"],
    original: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch position"],
) -> TokenLosses:
    """logits: of the edited model, in any dtype; original: log probabilities of the unedited one, float32."""
    ce, kl = [], []
    at_a_time = max(1, CHUNK_BYTES // (4 * logits[0].numel()))
    for mine, its, ids in zip(logits.split(at_a_time), original.split(at_a_time), tokens.split(at_a_time), strict=True):
        log_q = torch.log_softmax(mine.float(), -1)
        ce.append(-log_q[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1))
        kl.append(log_q.neg_().add_(its).mul_(its.exp()).sum(-1))
    return TokenLosses(torch.cat(ce), torch.cat(kl))


@dataclass
class PositionLosses:
    """Accumulator by position in the context: cross-entropy and KL summed over the contexts that count there."""

    length: int
    sums: Float[Tensor, "kinds length"] = field(init=False)
    """Float64 rows: predictions counted, their cross-entropy, their KL; positions counted, their KL. The last position
    of a context predicts nothing: it is a position, and no prediction."""

    def __post_init__(self) -> None:
        self.sums = torch.zeros(5, self.length, dtype=torch.float64)

    def update(self, losses: TokenLosses, counted: Bool[Tensor, "batch position"]) -> None:
        """counted: the positions whose predictions count."""
        mask = counted[:, :-1]
        ce, kl = losses.cross_entropy.double(), losses.divergence.double()
        parts = (mask.double(), ce.where(mask, 0.0), kl[:, :-1].where(mask, 0.0))
        new = torch.zeros(5, self.length, dtype=torch.float64, device=kl.device)
        for row, part in enumerate(parts):
            new[row, :-1] = part.sum(0)
        new[3], new[4] = counted.double().sum(0), kl.where(counted, 0.0).sum(0)
        self.sums += new.cpu()

    def merge(self, other: PositionLosses) -> None:
        self.sums += other.sums

    def finish(self, first: int = 0, stop: int | None = None) -> Behaviour:
        """Means over the positions from `first` to before `stop`, every prediction with the same weight."""
        predictions, ce, kl, positions, every = self.sums[:, first:stop].sum(1).tolist()
        nan = float("nan")
        return Behaviour(
            int(predictions),
            ce / predictions if predictions else nan,
            kl / predictions if predictions else nan,
            every / positions if positions else nan,
        )


class Behaviour(NamedTuple):
    """Means over predictions, in nats."""

    predictions: int
    ce: float
    kl: float
    """KL(original ‖ edited), over the same predictions."""
    kl_every_position: float
    """The same with the last positions of contexts, whose prediction no token checks."""
