"""The MLP's output matrix: from hidden activations to what is added to the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel, refuse_processed


def mlp_output_map(model: LanguageModel, layer: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, " d"]]:
    """(W_out, b_out) with `mlp_out@layer = mlp_acts@layer @ W_out + b_out`; b_out is zeros where the model has none.

    W_out may be a transposed view of the model's own weight: do not write to it. UserError where the layer does not
    exist, where there is no single output matrix (mixtures of experts), or where a norm stands between the matrix and
    the residual stream (Gemma-2), so that no such map exists.
    """
    refuse_processed(model.bridge)
    if not 0 <= layer < model.n_layers:
        raise UserError(
            f"The model {model.name} has layers 0 to {model.n_layers - 1}, but layer {layer} was asked for."
        )
    mlp = model.bridge.blocks[layer].mlp
    W_out = getattr(mlp, "W_out", None)
    if W_out is None or W_out.dim() != 2:
        raise UserError(f"The MLP of layer {layer} of {model.name} has no single output matrix.")
    if model.bridge.hook_dict[f"blocks.{layer}.hook_mlp_out"].name != f"blocks.{layer}.mlp.hook_out":
        raise UserError(
            f"In {model.name} a norm follows the MLP of layer {layer}, so its output is no affine map of the hidden "
            f"activations."
        )
    b_out = getattr(mlp, "b_out", None)
    b_out = torch.zeros(W_out.shape[1], dtype=W_out.dtype, device=W_out.device) if b_out is None else b_out.detach()
    return W_out.detach(), b_out
