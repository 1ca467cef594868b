"""ReLU with an L1 penalty, in two forms."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary, StepOutput


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
    ):
        super().__init__(encoder, b_enc, W_dec, b_dec)
        self.form = form
        self.unit_decoder = form == "unit-norm"

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        return self.pre_activations(x).relu()

    def losses(
        self, x: Float[Tensor, "rows d_in"], *, dead: Bool[Tensor, " d_sae"] | None = None, l1: float = 0.0
    ) -> StepOutput:
        """See `Dictionary.losses`; terms: squared_error, l0, l1 (the penalty without its coefficient)."""
        # The bias is b_enc in value; its second part is zero and carries the gradient of the b_dec inside the encoder,
        # so that autograd does not have to form the gradient of every row of x.
        b_dec = self.b_dec.detach()
        bias = self.b_enc + self.encoder.detach() @ (b_dec - self.b_dec)
        f = F.linear(x - b_dec, self.encoder, bias).relu()
        squared_error = (x - torch.addmm(self.b_dec, f, self.W_dec)).pow(2).sum(-1).mean()
        penalty = self._penalty(f).mean()
        with torch.no_grad():
            fired = f.sign().sum(0).long()  # exact: counts stay below 2^24; a third of the time of (f > 0).sum(0)
        terms = {"squared_error": squared_error.detach(), "l0": fired.sum() / x.shape[0], "l1": penalty.detach()}
        return StepOutput(squared_error + l1 * penalty, terms, fired)

    @torch.no_grad()
    def row_losses(self, x: Float[Tensor, "rows d_in"], *, l1: float = 0.0) -> Float[Tensor, " rows"]:
        f = self.encode(x)
        return (x - self.decode(f)).pow(2).sum(-1) + l1 * self._penalty(f)

    def _penalty(self, f: Float[Tensor, "rows d_sae"]) -> Float[Tensor, " rows"]:
        return f.sum(-1) if self.form == "unit-norm" else f @ self.W_dec.norm(dim=-1)
