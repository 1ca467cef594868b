"""TopK: the k largest pre-activations, then ReLU (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.base import Codes, Coefficient, Dictionary, Objective, Selected
from sae_tools.dictionaries.sparse import Support, select_top_k, squared_norm
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
        subtract_b_dec: bool = True,
        W_skip: Tensor | None = None,
    ):
        """aux_k: None is half of d_out, at most d_sae. Raises UserError where k or aux_k is not between 1 and d_sae."""
        super().__init__(encoder, b_enc, W_dec, b_dec, subtract_b_dec=subtract_b_dec, W_skip=W_skip)
        self.k = k
        self.aux_k = checked_aux_k(k, aux_k, self.d_out, self.d_sae)
        self.aux_coefficient = aux_coefficient

    def encode_sparse(self, x: Float[Tensor, "rows d_in"]) -> Codes:
        values, indices = self.pre_activations(x).topk(self.k, dim=-1, sorted=False)
        return Codes(values.relu(), indices)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        values, indices = self.encode_sparse(x)
        return values.new_zeros(values.shape[0], self.d_sae).scatter(-1, indices, values)

    def forward(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        return self.decode(self.encode_sparse(x), x)

    def select(self, centred: Float[Tensor, "rows d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Selected:
        active, candidates = select_top_k(
            centred,
            self.encoder,
            self.b_enc,
            self.k,
            precision=self.selection_precision,
            dead=dead,
            aux_k=self.aux_k,
        )
        return Selected(active, candidates)

    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        f = z.relu()
        error = y - on.decode(f, self.W_dec)
        return Objective(f, error, squared_norm(error), {})


def checked_aux_k(k: int, aux_k: int | None, d_out: int, d_sae: int) -> int:
    """aux_k, or its default where it is None. Raises UserError where k or aux_k is not between 1 and d_sae."""
    for key, value in (("k", k), ("aux_k", aux_k)):
        if value is not None and not 1 <= value <= d_sae:
            raise UserError(f"architecture.{key} is {value}, but must be between 1 and d_sae = {d_sae}.")
    return min(d_sae, max(1, d_out // 2)) if aux_k is None else aux_k
