"""The unit-norm decoder: before the optimiser's step and after it ('Towards Monosemanticity', appendix)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.sparse.kernels import kernels_for


@torch.no_grad()
def remove_parallel_gradient_(
    gradient: Float[Tensor, "d_sae d_out"], W_dec: Float[Tensor, "d_sae d_out"]
) -> Float[Tensor, ""]:
    """g_i <- g_i - (g_i · d_i) d_i in `gradient`, d_i the i-th decoder row, of norm 1; the norm of all that is left.

    Without it the optimiser's moments take up a part of the gradient that normalisation undoes anyway.
    """
    return kernels_for(gradient).remove_parallel_(gradient, W_dec).sum().sqrt()


@torch.no_grad()
def normalise_decoder_(dictionary: Dictionary, frozen: Float[Tensor, ""] | None = None) -> None:
    """Decoder rows at norm 1 (a row of zeros stays).

    frozen: on the device; where it is 1 no bit changes (rows of norm 1 within rounding would not all stay as they are).
    """
    W = dictionary.W_dec
    if frozen is None or frozen.device.type == "cpu":
        if frozen is None or not frozen:
            kernels_for(W).normalise_(W)
        return
    norms = W.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    W.div_(torch.where(frozen > 0, torch.ones_like(norms), norms))
