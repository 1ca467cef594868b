"""How much of a space's variance a reconstruction leaves unexplained."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class VarianceUnexplained:
    """Accumulator of the fraction of variance unexplained,

        FVU = sum ‖x - x̂‖² / sum ‖x - mean(x)‖²,

    over all tokens at once, with the mean over the same tokens (1 - FVU is the centred explained variance; per-token or
    per-batch ratios give other numbers). Sums are kept in float64.
    """

    tokens: int = 0
    error: float = 0.0
    square: float = 0.0
    total: Float[Tensor, " d"] = field(default_factory=lambda: torch.zeros(()))

    def update(self, x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"]) -> None:
        self.tokens += x.shape[0]
        self.error += (x - x_hat).double().pow(2).sum().item()
        x = x.double()
        self.square += x.pow(2).sum().item()
        self.total = self.total.to(x.device) + x.sum(0)

    def merge(self, other: VarianceUnexplained) -> None:
        self.tokens += other.tokens
        self.error += other.error
        self.square += other.square
        self.total = self.total + other.total

    def finish(self) -> float:
        """The FVU; NaN where there is no variance to explain."""
        variance = self.square - self.total.pow(2).sum().item() / max(self.tokens, 1)
        return self.error / variance if variance > 0 else float("nan")
