"""Between a dictionary in the coordinates of its space and the same one on the activations of the space's site.

What is exported acts on the site's activations, so that a program that knows nothing of spaces picks the same features,
with the same activations, and reconstructs what `Space.lift` makes of our reconstruction.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.parts import (
    KINDS,
    Parts,
    put_together,
    rescaled,
    shifted,
    take_apart,
    unit_scaling,
)
from sae_tools.spaces.space import Affine, Space

CHUNK = 4096
"""Features that are folded at once: float64 copies stay small."""


@torch.no_grad()
def fold(dictionary: Dictionary, space: Space | None, writes: Space | None = None, *, unit_norms: bool = True) -> Parts:
    """The dictionary's parts in the coordinates of its site, float32 on the CPU.

    space: what it reads, and reconstructs unless `writes` says another one; None: coordinates stay as they are.

    With forward(x) = x F + c of `space` and lift(z) = z L + l of what is written (`Space.affine`): W_enc' = F W_enc,
    W_dec' = W_dec L, W_skip' = F W_skip L, b_dec' = b_dec L + l + c W_skip L, and b_enc' takes up what is left of
    the pre-activations, so that they are the same on every row. A dictionary that subtracts b_dec still does, of
    b_dec', unless it writes another space. Features of a free decoder are first rescaled to decoder norm 1 in the space
    that they write, so that activations have that unit; not without `unit_norms`, and not where features compete by
    their pre-activations.
    """
    parts = take_apart(dictionary)
    if unit_norms and not dictionary.unit_decoder and KINDS[parts.kind].rescales:
        scaling = unit_scaling(parts.W_dec)
        parts = replace(rescaled(parts, scaling), settings={**parts.settings, **KINDS[parts.kind].unit})
    forward, lift = (_identity(parts.b_dec), _identity(parts.b_dec)) if space is None else space.affine()
    if space is None and parts.d_in != parts.d_out:
        forward = _identity(parts.encoder[0])
    if writes is not None:
        lift = writes.affine()[1]
    b_dec, W_skip = lift(parts.b_dec), parts.W_skip
    if W_skip is not None:
        b_dec = b_dec + lift.linear(forward.offset @ W_skip.double())
        W_skip = lift.linear(forward.pull_back(W_skip.T).T)
    subtract = parts.subtract_b_dec and writes is None
    rest = forward(b_dec) if subtract else forward.offset
    rest = rest - parts.b_dec if parts.subtract_b_dec else rest
    shift = torch.cat([encoder.double() @ rest for encoder in parts.encoder.split(CHUNK)])
    parts = shifted(parts, shift)
    encoder = [forward.pull_back(rows).float().cpu() for rows in parts.encoder.split(CHUNK)]
    W_dec = [lift.linear(rows).float().cpu() for rows in parts.W_dec.split(CHUNK)]
    changed = replace(parts, encoder=torch.cat(encoder), W_dec=torch.cat(W_dec), b_dec=b_dec, W_skip=W_skip)
    return on_cpu(replace(changed, subtract_b_dec=subtract))


@torch.no_grad()
def unfold(dictionary: Dictionary, space: Space, writes: Space | None = None) -> Dictionary:
    """The inverse of `fold`: a dictionary that acts on the activations of `space`'s site, in the space's coordinates.

    With lift(z) = z L + l of `space` and forward(x) = x F + c of what is written: W_enc = L W_enc', W_dec = W_dec' F,
    W_skip = L W_skip' F, b_dec = forward(b_dec' + l W_skip'), float32, on the CPU. Pre-activations are the same on
    every row, and lift of the reconstruction is the reconstruction; what was folded comes back up to what no activation
    can show (parts in null directions of the space) and float32 rounding. Where `fold` has rescaled a free decoder it
    comes back with rows of norm 1. Raises ValueError for a space that is not foldable, and for a dictionary of another
    width.
    """
    forward, lift = space.affine()
    into = forward if writes is None else writes.affine()[0]
    widths = (space.mean.shape[0], (writes or space).mean.shape[0])
    if (dictionary.d_in, dictionary.d_out) != widths:
        raise ValueError(f"a dictionary of width {dictionary.d_in} does not act on activations of {widths[0]}")
    parts = take_apart(dictionary)
    b_dec, W_skip = parts.b_dec.double(), parts.W_skip
    shift = None if parts.subtract_b_dec else lift.offset
    if W_skip is not None:
        b_dec, W_skip = b_dec + lift.offset @ W_skip.double(), into.linear(lift.pull_back(W_skip.T).T)
        if parts.subtract_b_dec:  # the folded b_dec has taken up the skip of the space's offset
            shift = lift(into(b_dec)) - parts.b_dec
    encoder = [lift.pull_back(rows).float().cpu() for rows in parts.encoder.split(CHUNK)]
    W_dec = [into.linear(rows).float().cpu() for rows in parts.W_dec.split(CHUNK)]
    if shift is not None:
        parts = shifted(parts, torch.cat([rows.double() @ shift for rows in parts.encoder.split(CHUNK)]))
    parts = replace(parts, encoder=torch.cat(encoder), W_dec=torch.cat(W_dec), b_dec=into(b_dec), W_skip=W_skip)
    return put_together(on_cpu(replace(parts, settings={**parts.settings, **KINDS[parts.kind].unit})))


@torch.no_grad()
def without_subtraction(parts: Parts) -> Parts:
    """The same function with pre-activations x W_enc + b_enc."""
    if not parts.subtract_b_dec:
        return parts
    shift = torch.cat([rows.double() @ -parts.b_dec.double() for rows in parts.encoder.split(CHUNK)])
    return replace(shifted(parts, shift), subtract_b_dec=False)


@torch.no_grad()
def with_subtraction(parts: Parts) -> Parts:
    """The same function with pre-activations (x - b_dec) W_enc + b_enc; for d_in = d_out."""
    if parts.subtract_b_dec:
        return parts
    shift = torch.cat([rows.double() @ parts.b_dec.double() for rows in parts.encoder.split(CHUNK)])
    return replace(shifted(parts, shift), subtract_b_dec=True)


def on_cpu(parts: Parts) -> Parts:
    """float32, contiguous, sharing nothing with anybody."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()

    return replace(
        parts,
        **{name: copy(getattr(parts, name)) for name in ("encoder", "b_enc", "W_dec", "b_dec")},
        features={name: copy(t) for name, t in parts.features.items()},
        W_skip=None if parts.W_skip is None else copy(parts.W_skip),
    )


def _identity(like: Tensor) -> Affine:
    return Affine(None, 1.0, torch.zeros_like(like, dtype=torch.float64))
