"""BatchTopK: the k largest pre-activations per row on average, chosen over the whole batch (Bussmann et al. 2024, arXiv
2412.06410)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_tools.dictionaries.base import Coefficient, Dictionary, Objective, Selected
from sae_tools.dictionaries.sparse import Support, select_largest, squared_norm
from sae_tools.dictionaries.topk import checked_aux_k


class BatchTopKDictionary(Dictionary):
    """In training the k · rows largest pre-activations of a batch, then ReLU; decoder rows are kept at norm 1.

    Loss: as `TopKDictionary`, auxiliary loss included.

    What one row makes active then depends on the others, so `encode` uses a threshold instead: the features whose
    pre-activation is above `threshold`, on which the smallest activations that training batches kept average out. Each
    step moves it by `threshold_rate` of the way to its batch's; the first one puts it there. It is 0 until then.
    """

    unit_decoder = True
    threshold: Float[Tensor, ""]

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
        threshold_rate: float = 0.05,
        threshold: float = 0.0,
        subtract_b_dec: bool = True,
        W_skip: Tensor | None = None,
    ):
        """aux_k: None is half of d_out, at most d_sae. Raises UserError where k or aux_k is not between 1 and d_sae."""
        super().__init__(encoder, b_enc, W_dec, b_dec, subtract_b_dec=subtract_b_dec, W_skip=W_skip)
        self.k = k
        self.aux_k = checked_aux_k(k, aux_k, self.d_out, self.d_sae)
        self.aux_coefficient = aux_coefficient
        self.threshold_rate = threshold_rate
        self.register_buffer("threshold", self.b_enc.new_tensor(threshold))

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        pre = self.pre_activations(x)
        return torch.where(pre > self.threshold, pre, 0.0).relu()

    def select(self, centred: Float[Tensor, "rows d_in"], dead: Bool[Tensor, " d_sae"] | None) -> Selected:
        count = self.k * len(centred)
        return Selected(*select_largest(centred, self.encoder, self.b_enc, count, dead=dead, aux_k=self.aux_k))

    def objective(self, z: Tensor, on: Support, y: Float[Tensor, "rows d_out"], l1: Coefficient) -> Objective:
        f = z.relu()
        error = y - on.decode(f, self.W_dec)
        return Objective(f, error, squared_norm(error), {}, {"smallest_active": smallest_positive(f.detach())})

    @torch.no_grad()
    def after_step_(self, terms: dict[str, Float[Tensor, ""]], frozen: Float[Tensor, ""]) -> None:
        seen, old = terms["smallest_active"], self.threshold
        moved = torch.where(old > 0, torch.lerp(old, seen, self.threshold_rate), seen)
        old.copy_(torch.where((seen > 0) & (frozen == 0), moved, old))


def smallest_positive(f: Tensor) -> Float[Tensor, ""]:
    """The smallest entry > 0; 0 where there is none."""
    infinity = f.new_full((1,), torch.inf)
    smallest = torch.cat([torch.where(f > 0, f, torch.inf).flatten(), infinity]).min()
    return torch.where(smallest < torch.inf, smallest, 0.0)
