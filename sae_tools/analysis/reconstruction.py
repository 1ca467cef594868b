"""How much of some vectors a reconstruction leaves unexplained, and in which way it is off."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

SMALL_NORM = 1e-4
"""A vector shorter than this counts as of norm 1 in `l2_ratio`, as SAELens has it."""


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


@dataclass
class ReconstructionQuality:
    """Accumulator of every figure that compares vectors with their reconstructions (`finish`). Sums in float64."""

    unexplained: VarianceUnexplained = field(default_factory=VarianceUnexplained)
    error_total: Float[Tensor, " d"] = field(default_factory=lambda: torch.zeros(()))
    """sum (x - x̂)"""
    product: float = 0.0
    """sum x · x̂"""
    square_hat: float = 0.0
    """sum ‖x̂‖²"""
    ratio: float = 0.0
    """sum ‖x̂‖ / ‖x‖"""
    cosine: float = 0.0
    legacy: float = 0.0
    """sum over tokens of ‖x - x̂‖² / ‖x - mean of its batch‖²"""
    batches: int = 0

    def update(self, x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"]) -> None:
        """The rows of one call are a batch to `ev_legacy`, and to nothing else."""
        if not len(x):
            return
        self.unexplained.update(x, x_hat)
        x, x_hat = x.double(), x_hat.double()
        error = x - x_hat
        self.error_total = self.error_total.to(x.device) + error.sum(0)
        product = (x * x_hat).sum(1)
        norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
        self.product += product.sum().item()
        self.square_hat += norm_hat.pow(2).sum().item()
        self.ratio += (norm_hat / torch.where(norm < SMALL_NORM, 1.0, norm)).sum().item()
        both = norm * norm_hat
        self.cosine += torch.where(both > 0, product / both, 0.0).sum().item()
        self.legacy += (error.pow(2).sum(1) / (x - x.mean(0)).pow(2).sum(1)).sum().item()
        self.batches += 1

    def merge(self, other: ReconstructionQuality) -> None:
        self.unexplained.merge(other.unexplained)
        self.error_total = self.error_total + other.error_total
        for name in ("product", "square_hat", "ratio", "cosine", "legacy", "batches"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def finish(self) -> dict[str, float | int]:
        """Over `tokens` tokens; NaN where a figure has no meaning (no variance, nothing written).

        - `fvu`: sum ‖x - x̂‖² / sum ‖x - mean‖², all tokens at once. `ev_centred` = 1 - fvu: the explained variance to
          use, as SAELens has it since 6.45.1.
        - `ev_legacy`: 1 - mean over tokens of ‖x - x̂‖² / ‖x - mean of the batch‖², as SAELens had it before, and still
          gives it as `explained_variance_legacy`. Depends on the batch, and on the few tokens near the mean.
        - `ev_constant_bias_blind`: 1 - Σ_d Var(x - x̂) / Σ_d Var(x), dictionary_learning's `frac_variance_explained`
          (over all tokens here): an error that is the same at every token does not count.
        - `mse`: ‖x - x̂‖² summed over dimensions, mean over tokens.
        - `relative_bias`: mean ‖x̂‖² / mean x · x̂ (Rajamanoharan et al., arXiv 2404.16014, equation 10); below 1 the
          reconstruction is too short.
        - `l2_ratio`: mean of ‖x̂‖ / ‖x‖. `cosine`: mean of cos(x, x̂), 0 where either is 0.
        """
        n = max(self.unexplained.tokens, 1)
        fvu = self.unexplained.finish()
        variance = self.unexplained.square - self.unexplained.total.pow(2).sum().item() / n
        error_variance = self.unexplained.error - self.error_total.pow(2).sum().item() / n
        nan = float("nan")
        return {
            "tokens": self.unexplained.tokens,
            "fvu": fvu,
            "ev_centred": 1 - fvu,
            "ev_legacy": 1 - self.legacy / n,
            "ev_legacy_batches": self.batches,
            "ev_constant_bias_blind": 1 - error_variance / variance if variance > 0 else nan,
            "mse": self.unexplained.error / n,
            "relative_bias": self.square_hat / self.product if self.product else nan,
            "l2_ratio": self.ratio / n,
            "cosine": self.cosine / n,
        }
