"""What splicing does to the model's predictions: cross-entropy and divergence from the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class NextTokenLoss:
    """Accumulator of cross-entropy and of KL(original ‖ edited), in nats per predicted token."""

    tokens: int = 0
    cross_entropy: float = 0.0
    divergence: float = 0.0

    def update(
        self,
        log_probs: Float[Tensor, "batch position vocab"],
        original: Float[Tensor, "batch position vocab"],
        tokens: Int[Tensor, "batch position"],
        counted: Bool[Tensor, "batch position"],
    ) -> None:
        """log_probs, original: of the edited and of the unedited model at every position.

        counted: positions whose prediction of the following token counts (the last position has none and never does).
        """
        mask = counted[:, :-1]
        picked = log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
        self.tokens += int(mask.sum())
        self.cross_entropy -= picked[mask].double().sum().item()
        if log_probs is not original:
            # A context at a time: three more tensors of that size would otherwise be there at once.
            parts = zip(log_probs[:, :-1], original[:, :-1], strict=True)
            kl = torch.stack([(its.exp() * (its - mine)).sum(-1) for mine, its in parts])
            self.divergence += kl[mask].double().sum().item()

    def merge(self, other: NextTokenLoss) -> None:
        self.tokens += other.tokens
        self.cross_entropy += other.cross_entropy
        self.divergence += other.divergence

    def finish(self) -> tuple[float, float]:
        """(mean cross-entropy, mean KL), nats per token."""
        n = max(self.tokens, 1)
        return self.cross_entropy / n, self.divergence / n


def recovered(reconstruction: float, ablation: float, original: float) -> float:
    """Share of what the ablation costs that the reconstruction gives back, (ablation - rec) / (ablation - original).

    1 for a perfect reconstruction, 0 for one no better than the ablation; NaN where the ablation costs nothing.
    """
    cost = ablation - original
    return (ablation - reconstruction) / cost if cost != 0 else float("nan")


def log_softmax(logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, "batch position vocab"]:
    return torch.log_softmax(logits.float(), dim=-1)
