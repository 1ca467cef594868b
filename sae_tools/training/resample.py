"""Neuron resampling as in 'Towards Monosemanticity' (Bricken et al. 2023, appendix): dead features start again from
inputs that the dictionary reconstructs badly."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary

ENCODER_SCALE = 0.2
"""Norm of a resampled encoder row, as a share of the mean norm of the alive ones."""


def selection_probabilities(losses: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Proportional to the squared loss of each row, float64."""
    weights = (losses.double() / losses.double().max().clamp_min(torch.finfo(torch.float64).tiny)).square()
    return weights / weights.sum()


def draw_rows(
    losses: Float[Tensor, " rows"],
    lengths: Float[Tensor, " rows"],
    count: int,
    generator: torch.Generator,
    *,
    replacement: bool = True,
) -> Int[Tensor, " count"]:
    """`count` rows with probability proportional to the squared loss, on the CPU.

    losses: of each row (`Dictionary.row_losses`), at most 2^24. lengths: of each row's vector: one without a direction,
    or anything not finite, is never drawn. replacement: whether a row may be drawn twice; without it, rows with zero
    loss are drawn once the others run out. Raises ValueError if there are too few rows.
    """
    usable = torch.isfinite(losses) & torch.isfinite(lengths) & (lengths > 0)
    if int(usable.sum()) < (1 if replacement else count):
        raise ValueError("too few rows with a finite loss and a direction to resample from")
    weights = selection_probabilities(torch.where(usable, losses, 0.0)).cpu()
    if not replacement:  # rows of zero loss only come after all others
        weights = torch.where(usable.cpu(), weights.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return torch.multinomial(weights, count, replacement, generator=generator)


@torch.no_grad()
def restart_features_(
    dictionary: Dictionary,
    optimiser: torch.optim.Optimizer | None,
    dead: Bool[Tensor, " d_sae"],
    vectors: Float[Tensor, "resampled d_in"],
    targets: Float[Tensor, "resampled d_out"] | None = None,
) -> float:
    """Start every dead feature again from its vector, in place; returns the norm of their new encoder rows.

    vectors: one for each dead feature; in the paper they are inputs, b_dec not subtracted. targets: what a two-site
    dictionary reconstructs from them; None: the vectors.

    The decoder row becomes the target divided by its norm; the encoder row has the vector's direction and 0.2 times the
    mean norm of the alive features' encoder rows (of all, if none is alive); b_enc becomes 0. Adam's moments of exactly
    these parameters are set to zero; its step count, one per tensor, stays.
    """
    features = dead.nonzero().squeeze(1)
    alive = dictionary.encoder[~dead] if not bool(dead.all()) else dictionary.encoder
    norm = ENCODER_SCALE * alive.norm(dim=-1).mean()
    if features.numel() == 0:
        return float(norm)
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    written = unit if targets is None else targets / targets.norm(dim=-1, keepdim=True)
    dictionary.W_dec[features] = written.to(dictionary.W_dec.dtype)
    dictionary.encoder[features] = (norm * unit).to(dictionary.encoder.dtype)
    dictionary.b_enc[features] = 0
    if optimiser is not None:
        for parameter in (dictionary.encoder, dictionary.W_dec, dictionary.b_enc):
            for value in optimiser.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[features] = 0
    return float(norm)
