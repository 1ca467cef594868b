"""Gated: whether a feature fires and how strongly are told apart (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_tools.dictionaries.base import Coefficient, Dictionary, Objective, Selected
from sae_tools.dictionaries.relu import DENSE_ABOVE
from sae_tools.dictionaries.sparse import Support, select_above


class GatedDictionary(Dictionary):
    """f = ReLU((π - b_enc) exp(r_mag) + b_mag) where the gate π = (x - b_dec) W_enc + b_enc is above 0, else 0.

    b_enc is the paper's b_gate; both ways share their weights but for a factor (their equations 7 and 8). Loss (their
    equation 9), summed over dimensions and averaged over rows:

        ‖x - x̂‖² + l1 Σ ReLU(π_i) + ‖x - x̂_gate‖²

    x̂_gate is made of ReLU(π) by a decoder (with b_dec and W_skip) that is taken as constant: it is what teaches the
    gate, on whose sign x̂ does not depend differentiably. The penalty therefore shrinks π and leaves f alone.

    - `unit-norm`: decoder rows kept at norm 1, as in the paper.
    - `decoder-norm`: a free decoder, and ReLU(π_i) ‖d_i‖ in the penalty: otherwise small gates under long decoder rows
      would pay less for the same reconstruction.
    """

    def __init__(
        self,
        encoder: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        r_mag: Float[Tensor, " d_sae"],
        b_mag: Float[Tensor, " d_sae"],
        *,
        form: Literal["unit-norm", "decoder-norm"] = "unit-norm",
        subtract_b_dec: bool = True,
        W_skip: Tensor | None = None,
    ):
        super().__init__(encoder, b_enc, W_dec, b_dec, subtract_b_dec=subtract_b_dec, W_skip=W_skip)
        self.r_mag = nn.Parameter(r_mag)
        self.b_mag = nn.Parameter(b_mag)
        self.form: Literal["unit-norm", "decoder-norm"] = form
        self.unit_decoder = form == "unit-norm"

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        gate = self.pre_activations(x)
        return torch.where(gate > 0, (gate - self.b_enc) * self.r_mag.exp() + self.b_mag, 0.0).relu()

    def select(self, centred: Float[Tensor, "rows d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Selected | None:
        active = select_above(centred, self.encoder, self.b_enc, torch.zeros_like(self.b_enc), DENSE_ABOVE)
        return None if active is None else Selected(active, None)

    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        scale = self.r_mag.exp()
        shift = on.per_feature(self.b_mag - self.b_enc * scale)
        f = torch.where(z > 0, z * on.per_feature(scale) + shift, 0.0).relu()
        error = y - on.decode(f, self.W_dec)
        gate = z.relu()
        gate_error = (y.detach() - on.decode(gate, self.W_dec.detach())).pow(2).sum()
        weighted = gate if self.form == "unit-norm" else gate * on.per_feature(self.W_dec.norm(dim=-1))
        penalty = weighted.sum()
        loss = error.pow(2).sum() + l1 * penalty + gate_error
        return Objective(f, error, loss, {"l1": penalty.detach(), "gate_error": gate_error.detach()})

    def _row_losses(self, x: Tensor, target: Tensor, l1: Coefficient) -> Float[Tensor, " rows"]:
        gate = self.pre_activations(x).relu()
        weights = torch.ones_like(self.b_enc) if self.form == "unit-norm" else self.decoder_norms
        by_gate = (target - self.decode(gate, x)).pow(2).sum(-1)
        return super()._row_losses(x, target, 0.0) + l1 * (gate @ weights) + by_gate
