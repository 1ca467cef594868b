"""TopK: the k largest pre-activations, then ReLU (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.base import Codes, Dictionary, StepOutput
from sae_tools.dictionaries.sparse import Support, decode_at, encode_at
from sae_tools.errors import UserError


class TopKDictionary(Dictionary):
    """At most k features fire on a row; decoder rows are kept at norm 1.

    Loss: ‖x - x̂‖² summed over dimensions + aux_coefficient ‖e - ê‖², both averaged over rows. e = x - x̂ is taken as
    constant, ê is what the (up to) `aux_k` dead features with the largest pre-activations, after ReLU, make of it
    through the same decoder without bias: the auxiliary loss of Gao et al., equations as in their section 2.4, in the
    units of the main loss (not divided by the variance of e). Only dead features and, through the pre-encoder bias,
    b_dec get a gradient from it.
    """

    unit_decoder = True

    def __init__(
        self,
        encoder: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        *,
        k: int,
        aux_k: int | None = None,
        aux_coefficient: float = 1 / 32,
    ):
        """aux_k: None is half of d_in, at most d_sae. Raises UserError where k or aux_k is not between 1 and d_sae."""
        super().__init__(encoder, b_enc, W_dec, b_dec)
        for key, value in (("k", k), ("aux_k", aux_k)):
            if value is not None and not 1 <= value <= self.d_sae:
                raise UserError(f"architecture.{key} is {value}, but must be between 1 and d_sae = {self.d_sae}.")
        self.k = k
        self.aux_k = min(self.d_sae, max(1, self.d_in // 2)) if aux_k is None else aux_k
        self.aux_coefficient = aux_coefficient

    def encode_sparse(self, x: Float[Tensor, "rows d_in"]) -> Codes:
        values, indices = self.pre_activations(x).topk(self.k, dim=-1, sorted=False)
        return Codes(values.relu(), indices)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        values, indices = self.encode_sparse(x)
        return values.new_zeros(values.shape[0], self.d_sae).scatter(-1, indices, values)

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        return self.decode(self.encode_sparse(x))

    def losses(
        self, x: Float[Tensor, "rows d_in"], *, dead: Bool[Tensor, " d_sae"] | None = None, l1: float = 0.0
    ) -> StepOutput:
        """See `Dictionary.losses`; terms: squared_error, l0, aux (‖e - ê‖², 0 where no feature is dead)."""
        with torch.no_grad():
            centred = x - self.b_dec
            pre = torch.addmm(self.b_enc, centred, self.W_enc)
            top, indices = pre.topk(self.k, dim=-1, sorted=False)
        support = Support(indices, self.d_sae)
        values = encode_at(top, centred, self.encoder, self.b_enc, self.b_dec, support)
        error = x - self.b_dec - decode_at(values, self.W_dec, support)
        squared_error = error.pow(2).sum(-1).mean()
        loss, aux = squared_error, torch.zeros_like(squared_error)
        codes = None
        if dead is not None and self.aux_coefficient > 0:
            top_dead = top_dead_counted if pre.device.type == "cpu" else top_dead_fixed
            codes = top_dead(pre, dead, self.aux_k)
        if codes is not None:
            dead_support = Support(codes.indices, self.d_sae)
            dead_values = encode_at(codes.values, centred, self.encoder, self.b_enc, self.b_dec, dead_support)
            aux = (error.detach() - decode_at(dead_values, self.W_dec, dead_support)).pow(2).sum(-1).mean()
            loss = loss + self.aux_coefficient * aux
        fired = support.count(values.detach() > 0)
        terms = {"squared_error": squared_error.detach(), "l0": fired.sum() / x.shape[0], "aux": aux.detach()}
        return StepOutput(loss, terms, fired)


@torch.no_grad()
def top_dead_fixed(pre: Float[Tensor, "rows d_sae"], dead: Bool[Tensor, " d_sae"], aux_k: int) -> Codes:
    """Pre-activations and indices of the `aux_k` largest among dead features, in shapes that do not depend on the data:
    entries beyond the number of dead features have the value -inf."""
    return Codes(*pre.masked_fill(~dead, -torch.inf).topk(aux_k, dim=-1, sorted=False))


@torch.no_grad()
def top_dead_counted(pre: Float[Tensor, "rows d_sae"], dead: Bool[Tensor, " d_sae"], aux_k: int) -> Codes | None:
    """The same where it costs nothing to ask which features are dead: only their columns are looked at, so there may be
    fewer than `aux_k` entries; None if no feature is dead."""
    columns = dead.nonzero().squeeze(1)
    if columns.shape[0] == 0:
        return None
    values, indices = pre.index_select(1, columns).topk(min(aux_k, columns.shape[0]), dim=-1, sorted=False)
    return Codes(values, columns[indices])
