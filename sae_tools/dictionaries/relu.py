"""ReLU with an L1 penalty, in two forms."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.base import Coefficient, Dictionary, Objective, Selected
from sae_tools.dictionaries.sparse import Support, select_above, squared_norm

DENSE_ABOVE = 0.1
"""Share of active features above which dense products are faster than sums over active pairs (CPU, 2 cores)."""


class ReLUDictionary(Dictionary):
    """f = ReLU((x - b_dec) W_enc + b_enc).

    Loss: ‖x - x̂‖² summed over dimensions + l1 · penalty, both averaged over rows.

    - `unit-norm`: penalty Σ f_i, decoder rows kept at norm 1 (Bricken et al. 2023, 'Towards Monosemanticity'; their
      squared error is a mean over dimensions, so their coefficient times d_in is this one).
    - `decoder-norm`: penalty Σ f_i ‖d_i‖ with a free decoder (Anthropic, April 2024 update), which is unchanged when a
      feature's encoder is multiplied and its decoder divided by one number.
    """

    def __init__(
        self,
        encoder: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        *,
        form: Literal["unit-norm", "decoder-norm"] = "unit-norm",
        subtract_b_dec: bool = True,
        W_skip: Tensor | None = None,
    ):
        super().__init__(encoder, b_enc, W_dec, b_dec, subtract_b_dec=subtract_b_dec, W_skip=W_skip)
        self.form = form
        self.unit_decoder = form == "unit-norm"

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        return self.pre_activations(x).relu()

    def select(self, centred: Float[Tensor, "rows d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Selected | None:
        active = select_above(centred, self.encoder, self.b_enc, torch.zeros_like(self.b_enc), DENSE_ABOVE)
        return None if active is None else Selected(active, None)

    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        f = z.relu()
        error = y - on.decode(f, self.W_dec)
        weighted = f if self.form == "unit-norm" else f * on.per_feature(self.W_dec.norm(dim=-1))
        penalty = weighted.sum()
        return Objective(f, error, squared_norm(error) + l1 * penalty, {"l1": penalty.detach()})

    def row_penalties(self, f: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " rows"]:
        return f.sum(-1) if self.form == "unit-norm" else f @ self.W_dec.norm(dim=-1)
