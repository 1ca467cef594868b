"""How often each feature fires: exact counts, and the classes drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass
class FiringCounts:
    """Accumulator: on how many of the tokens seen each feature was > 0."""

    d_sae: int
    tokens: int = 0
    counts: Int[Tensor, " d_sae"] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.d_sae, dtype=torch.int64)

    def update(self, fired: Int[Tensor, " d_sae"], tokens: int) -> None:
        """fired: on how many of these `tokens` tokens each feature was > 0."""
        self.counts += fired.cpu()
        self.tokens += tokens

    def merge(self, other: FiringCounts) -> None:
        self.counts += other.counts
        self.tokens += other.tokens

    def finish(self, ultra_rare_below: float, dense_above: float) -> dict[str, float | int]:
        """Counts of features by class, and the mean number active per token.

        alive: fired on at least one of the tokens counted; dead: on none, which bounds its density below 3 / tokens
        (95 %, the rule of three: (1 - p)^n = 0.05 at p = 2.996 / n, if tokens were independent);
        ultra_rare: fired, on a share below `ultra_rare_below`; dense: on a share above `dense_above`.
        """
        density = self.counts.double() / max(self.tokens, 1)
        return {
            "l0": density.sum().item(),
            "alive": int((self.counts > 0).sum()),
            "dead": int((self.counts == 0).sum()),
            "ultra_rare": int(((self.counts > 0) & (density < ultra_rare_below)).sum()),
            "dense": int((density > dense_above).sum()),
            "dead_density_bound": 3 / max(self.tokens, 1),
        }
