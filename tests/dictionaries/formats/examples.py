"""Dictionaries of every architecture, small, with weights at random and no two decoder norms alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.parts import KINDS, Parts, put_together

D, F = 12, 40


def example(
    kind: str,
    *,
    d_in: int = D,
    d_out: int = D,
    d_sae: int = F,
    skip: bool = False,
    subtract: bool = True,
    unit: bool = False,
    seed: int = 0,
) -> Dictionary:
    """unit: decoder rows of norm 1, and settings that say so."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    W_dec = draw(d_sae, d_out) * torch.linspace(0.3, 3, d_sae).unsqueeze(1)
    W_dec = torch.nn.functional.normalize(W_dec, dim=-1) if unit else W_dec
    features = {"threshold": draw(d_sae).abs(), "r_mag": 0.3 * draw(d_sae), "b_mag": 0.5 * draw(d_sae)}
    settings = {"k": 7, "threshold": 0.75, "widths": [5, 12, d_sae], "aux_k": 3, "aux_coefficient": 0.25}
    known = KINDS[kind]
    chosen = {name: settings[name] for name in known.settings if name in settings}
    return put_together(
        Parts(
            kind,
            draw(d_sae, d_in) / d_in**0.5,
            0.3 * draw(d_sae),
            W_dec,
            0.5 * draw(d_out),
            {name: features[name] for name in known.features},
            {**chosen, **(known.unit if unit else known.free)},
            W_skip=draw(d_in, d_out) / d_in**0.5 if skip else None,
            subtract_b_dec=subtract and d_in == d_out,
        )
    )


def rows(d: int = D, n: int = 200) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(7))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def same(read: Dictionary, written: Dictionary, *, folded: bool = False) -> None:
    """The same features, as strongly (but for decoder norms, where they are folded), and the same output."""
    assert type(read) is type(written)
    x = rows(written.d_in)
    with torch.no_grad():
        f = written.encode(x) * (written.decoder_norms if folded else 1)
        assert (f > 0).any(1).float().mean() > 0.9  # else there is nothing to compare
        assert close(read.encode(x), f) and ((read.encode(x) > 0) == (f > 0)).float().mean() > 0.9999
        assert close(read(x), written(x))
