"""A dictionary under study: what it reads and what it writes, in which spaces, and what it makes of a token."""

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
    """Where it reads."""
    space: Space
    """In which coordinates."""
    dictionary: Dictionary
    target_space: Space | None = None
    """Of a two-site dictionary: the coordinates of what it writes, with their site; None: the same as it reads."""

    @property
    def written(self) -> Space:
        """The coordinates of its reconstructions."""
        return self.space if self.target_space is None else self.target_space

    @property
    def written_site(self) -> Site:
        """Where its reconstructions belong: what is spliced and ablated."""
        return self.site if self.target_space is None else self.target_space.site

    @property
    def sites(self) -> tuple[Site, ...]:
        """All whose activations are needed to measure it."""
        return (self.site,) if self.target_space is None else (self.site, self.target_space.site)


class Reconstruction(NamedTuple):
    z: Float[Tensor, "rows d_out"]
    """What the dictionary is to reconstruct, in the space that it writes."""
    z_hat: Float[Tensor, "rows d_out"]
    """Its reconstruction there."""
    x_hat: Float[Tensor, "rows d_written"]
    """The reconstruction at the written site; what the space cannot see is the original's."""
    fired: Int[Tensor, " d_sae"]
    """On how many of the rows each feature was > 0."""
    active: Int[Tensor, " rows"]
    """How many features were > 0 at each row."""


@torch.no_grad()
def reconstruct(
    subject: Subject,
    x: Float[Tensor, "rows d_site"],
    scale: Float[Tensor, " rows"] | None,
    position: Int[Tensor, " rows"],
    y: Float[Tensor, "rows d_written"] | None = None,
) -> Reconstruction:
    """Encode, decode and lift some tokens' activations `x` at the subject's site.

    y: those at the written site of a two-site dictionary (`subject.target_space`), and ignored for others.

    Computed on the dictionary's device, which may be another than the model's; x_hat comes back to x's.
    """
    device, home = subject.dictionary.b_dec.device, x.device
    x, position = x.to(device), position.to(device)
    scale = None if scale is None else scale.to(device)
    z = subject.space.forward(x, scale=scale, position=position)
    z_hat, fired, active = encode_and_decode(subject.dictionary, z)
    if subject.target_space is not None:
        if y is None:
            raise ValueError(f"'{subject.name}' writes at {subject.written_site.name}, whose activations are needed")
        x = y.to(device)
        z = subject.target_space.forward(x, scale=scale, position=position)
    x_hat = subject.written.lift(z_hat, scale=scale, position=position, x=x)
    return Reconstruction(z, z_hat, x_hat.to(home), fired, active)


def encode_and_decode(
    dictionary: Dictionary, z: Float[Tensor, "rows d_in"]
) -> tuple[Float[Tensor, "rows d_out"], Int[Tensor, " d_sae"], Int[Tensor, " rows"]]:
    """(reconstruction, on how many rows each feature fired, how many fired at each row), through sparse codes where the
    architecture has them."""
    fired = torch.zeros(dictionary.d_sae, dtype=torch.int64, device=z.device)
    parts, active = [], []
    for part in z.split(max(1, ENTRIES // dictionary.d_sae)):
        if isinstance(dictionary, TopKDictionary):
            codes = dictionary.encode_sparse(part)
            fired += torch.bincount(codes.indices[codes.values > 0], minlength=dictionary.d_sae)
            active.append((codes.values > 0).sum(1))
            parts.append(dictionary.decode(codes, part))
        else:
            f = dictionary.encode(part)
            on = f > 0
            fired += on.sum(0)
            active.append(on.sum(1))
            parts.append(dictionary.decode(f, part))
    return torch.cat(parts), fired, torch.cat(active)


def kept_positions(
    tokens: Int[Tensor, "batch position"], rows: RowsConfig, special_token_ids: tuple[int, ...]
) -> Bool[Tensor, "batch position"]:
    """Which tokens become rows: not the first `skip_positions` of a context, and no special tokens if so set."""
    kept = torch.ones_like(tokens, dtype=torch.bool)
    kept[:, : rows.skip_positions] = False
    if rows.skip_special and special_token_ids:
        kept &= ~torch.isin(tokens, torch.tensor(special_token_ids, device=tokens.device))
    return kept
