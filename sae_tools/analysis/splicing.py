"""The edits of an evaluation at one site: the reconstruction put in, and the ablations it is compared with.

Each is made at the tokens of a mask and nowhere else.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.models.intervene import Edit, EditFunction, mean_ablate, replace, zero_ablate
from sae_tools.models.sites import Site

BASELINES = ("mean", "zero", "resample")
"""Ablations, the one to read first in front."""


def put_at(kept: Bool[Tensor, "batch position"], vectors: Float[Tensor, "kept d"]) -> EditFunction:
    """An edit function that puts the vectors, one for each kept token, in the activations' place."""

    def edit(activation: Tensor) -> Tensor:
        out = activation.clone()
        out[kept] = vectors.to(activation)
        return out

    return edit


def splice(site: Site, kept: Bool[Tensor, "batch position"], vectors: Float[Tensor, "kept d"]) -> Edit:
    return replace(site, put_at(kept, vectors))


def donors(tokens: int, random: torch.Generator) -> Int[Tensor, " tokens"]:
    """For each of some tokens another one of them, each once: one random cycle through all (a lone one is its own)."""
    cycle = torch.randperm(tokens, generator=random)
    out = torch.empty_like(cycle)
    out[cycle] = cycle.roll(-1)
    return out


def ablations(
    site: Site,
    activation: Float[Tensor, "batch position d"],
    mean: Float[Tensor, " d"],
    where: Bool[Tensor, "batch position"],
    random: torch.Generator,
) -> dict[str, Edit]:
    """By name: the site's activations become their `mean`, zero, or those of another random token of `where` in this
    batch (`resample`), which keeps their distribution and breaks their link with the text."""
    x = activation[where]
    other = x[donors(len(x), random).to(x.device)]
    return {
        "mean": mean_ablate(site, mean, where=where),
        "zero": zero_ablate(site, where=where),
        "resample": splice(site, where, other),
    }
