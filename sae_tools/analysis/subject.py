"""A dictionary under study: what it reads, in which space, and what it makes of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.config import RowsConfig
from sae_tools.dictionaries import Dictionary, TopKDictionary
from sae_tools.models.sites import Site
from sae_tools.spaces import Space

ENTRIES = 2**24
"""Activations, of all features on some rows, that exist at a time (64 MiB in float32, several such tensors)."""


@dataclass(frozen=True)
class Subject:
    name: str
    site: Site
    space: Space
    dictionary: Dictionary


class Reconstruction(NamedTuple):
    z: Float[Tensor, "rows dim"]
    """The tokens in the dictionary's space."""
    z_hat: Float[Tensor, "rows dim"]
    """Their reconstruction there."""
    x_hat: Float[Tensor, "rows d_site"]
    """The reconstruction at the site; what the space cannot see is the original's."""
    fired: Int[Tensor, " d_sae"]
    """On how many of the rows each feature was > 0."""


@torch.no_grad()
def reconstruct(
    subject: Subject,
    x: Float[Tensor, "rows d_site"],
    scale: Float[Tensor, " rows"] | None,
    position: Int[Tensor, " rows"],
) -> Reconstruction:
    """Encode, decode and lift some tokens' activations `x` at the subject's site.

    Computed on the dictionary's device, which may be another than the model's; x_hat comes back to x's.
    """
    device, home = subject.dictionary.b_dec.device, x.device
    x, position = x.to(device), position.to(device)
    scale = None if scale is None else scale.to(device)
    z = subject.space.forward(x, scale=scale, position=position)
    z_hat, fired = encode_and_decode(subject.dictionary, z)
    x_hat = subject.space.lift(z_hat, scale=scale, position=position, x=x)
    return Reconstruction(z, z_hat, x_hat.to(home), fired)


def encode_and_decode(
    dictionary: Dictionary, z: Float[Tensor, "rows dim"]
) -> tuple[Float[Tensor, "rows dim"], Int[Tensor, " d_sae"]]:
    """(reconstruction, on how many rows each feature fired), through sparse codes where the architecture has them."""
    fired = torch.zeros(dictionary.d_sae, dtype=torch.int64, device=z.device)
    parts = []
    for part in z.split(max(1, ENTRIES // dictionary.d_sae)):
        if isinstance(dictionary, TopKDictionary):
            codes = dictionary.encode_sparse(part)
            fired += torch.bincount(codes.indices[codes.values > 0], minlength=dictionary.d_sae)
            parts.append(dictionary.decode(codes))
        else:
            f = dictionary.encode(part)
            fired += (f > 0).sum(0)
            parts.append(dictionary.decode(f))
    return torch.cat(parts), fired


def kept_positions(
    tokens: Int[Tensor, "batch position"], rows: RowsConfig, special_token_ids: tuple[int, ...]
) -> Bool[Tensor, "batch position"]:
    """Which tokens become rows: not the first `skip_positions` of a context, and no special tokens if so set."""
    kept = torch.ones_like(tokens, dtype=torch.bool)
    kept[:, : rows.skip_positions] = False
    if rows.skip_special and special_token_ids:
        kept &= ~torch.isin(tokens, torch.tensor(special_token_ids, device=tokens.device))
    return kept
