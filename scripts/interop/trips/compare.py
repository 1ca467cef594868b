"""Whether two dictionaries do the same on the same rows, and how near a row's features are to being others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.parts import take_apart

TOLERANCE = 1e-5
"""Of each row: ‖a − b‖ / ‖b‖, for activations and for reconstructions."""
ROUNDING = 1e-6
"""A pre-activation in float32 is taken to be known to this share of Σ|x_i w_i| + Σ|b_i w_i| + |b_enc|, some 8 ulp."""
TIES = 0.01
"""Share of the rows that may differ because of a tie; more of them and there is something else."""


@dataclass(frozen=True)
class Comparison:
    """Of two dictionaries on the same rows. Rows whose features differ do not count for the errors."""

    rows: int
    equal: int
    """Rows with the same active features on both sides."""
    tied: int
    """Rows where they differ, in features alone whose pre-activation is as good as at what decides."""
    near: int
    """All rows with such a feature, whether it came out the same or not."""
    activations: float
    """Worst ‖Δf‖ / ‖f‖ of a row."""
    reconstructions: float
    """Worst ‖Δx̂‖ / ‖x̂‖ of a row."""
    l0: float
    """Active features per row, of the second."""

    @property
    def different(self) -> int:
        """Rows whose features differ, and not by a tie."""
        return self.rows - self.equal - self.tied

    @property
    def ok(self) -> bool:
        worst = max(self.activations, self.reconstructions)
        return self.different == 0 and self.tied <= TIES * self.rows and worst <= TOLERANCE and self.l0 > 0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def compare(
    f: Float[Tensor, "rows d_sae"],
    out: Float[Tensor, "rows d_out"],
    f_other: Float[Tensor, "rows d_sae"],
    out_other: Float[Tensor, "rows d_out"],
    distance: Float[Tensor, "rows d_sae"],
) -> Comparison:
    """Activations and reconstructions of two dictionaries, the activations in the same unit.

    distance: how far each feature is from switching, in units of rounding (`distances`). Raises ValueError for shapes
    that are not alike.
    """
    if f.shape != f_other.shape or out.shape != out_other.shape or f.shape != distance.shape:
        raise ValueError(f"shapes differ: {[tuple(t.shape) for t in (f, f_other, distance, out, out_other)]}")
    differ = (f > 0) != (f_other > 0)
    equal = ~differ.any(-1)
    at_tie = distance <= 1
    tied = ~equal & (~differ | at_tie).all(-1)
    return Comparison(
        rows=len(f),
        equal=int(equal.sum()),
        tied=int(tied.sum()),
        near=int(at_tie.any(-1).sum()),
        activations=worst(f[equal], f_other[equal]),
        reconstructions=worst(out[equal], out_other[equal]),
        l0=(f_other > 0).sum(-1).double().mean().item(),
    )


def worst(a: Float[Tensor, "rows d"], b: Float[Tensor, "rows d"]) -> float:
    """The largest ‖a − b‖ / ‖b‖ of a row, in float64; of a row of zeros, ‖a‖. NaN anywhere is infinite."""
    if not len(a):
        return float("inf")
    a, b = a.double(), b.double()
    norm = b.norm(dim=-1)
    error = (a - b).norm(dim=-1) / torch.where(norm > 0, norm, 1.0)
    return float(error.nan_to_num(nan=float("inf")).max())


@torch.no_grad()
def distances(dictionary: Dictionary, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
    """How far each feature is from switching on or off, in float64, in units of what float32 rounding may do to its
    pre-activation: 1 or less is a tie."""
    parts = take_apart(dictionary)
    x, encoder, b_enc = x.double(), parts.encoder.double(), parts.b_enc.double()
    size = x.abs()
    if parts.subtract_b_dec:
        x, size = x - parts.b_dec.double(), size + parts.b_dec.double().abs()
    pre = x @ encoder.T + b_enc
    unit = ROUNDING * (size @ encoder.abs().T + b_enc.abs()) + torch.finfo(torch.float64).tiny
    if parts.kind == "topk":
        return from_selection(pre, parts.settings["k"]) / (2 * unit.amax(-1, keepdim=True))
    if parts.kind in ("batchtopk", "matryoshka"):
        return (pre - max(0.0, parts.settings["threshold"])).abs() / unit
    if parts.kind == "jumprelu":
        return (pre - parts.features["threshold"].double().clamp(min=0)).abs() / unit
    if parts.kind == "gated":
        stretch, b_mag = parts.features["r_mag"].double().exp(), parts.features["b_mag"].double()
        magnitude = ((pre - b_enc) * stretch + b_mag) / (unit * stretch + ROUNDING * b_mag.abs())
        gate = pre / unit
        on = torch.minimum(gate, magnitude)  # all must stay above 0 to stay on, and whatever is below come up
        return torch.where(on > 0, on, torch.maximum(-gate.clamp(max=0), -magnitude.clamp(max=0)))
    return pre.abs() / unit


def from_selection(pre: Float[Tensor, "rows d_sae"], k: int) -> Float[Tensor, "rows d_sae"]:
    """How far each pre-activation is from being active or not among the k largest after ReLU."""
    largest = pre.topk(min(k + 1, pre.shape[-1]), dim=-1).values
    last = largest[:, k - 1 : k]
    following = largest[:, k : k + 1] if largest.shape[-1] > k else torch.full_like(last, -torch.inf)
    active = (pre >= last) & (pre > 0)
    to_fall = torch.minimum(pre - following, pre)
    to_rise = torch.maximum(torch.where(pre >= last, -torch.inf, last - pre), -pre)
    return torch.where(active, to_fall, to_rise)
