"""What a forward pass costs: FLOPs per token."""

from __future__ import annotations

from sae_tools.models.language_model import LanguageModel
from sae_tools.models.unwrap import own_parameters


def flops_per_token(model: LanguageModel, upto_layer: int | None = None, *, context: int | None = None) -> int:
    """Floating-point operations of the forward pass for one token, a multiply-add counted as two.

    upto_layer: the last layer that runs (a pass that stops there has no unembedding); None: the whole model.
    context: tokens per context, for attention; default the model's longest.

    Twice the weights of every matrix product, plus attention's scores and weighted sum, 4 · n_heads · d_head per token
    attended to, of which there are context / 2 on average. Embedding look-ups, norms, biases and activation functions
    are left out; of a mixture of experts, all experts are counted.
    """
    cfg = model.bridge.cfg
    last = model.n_layers - 1 if upto_layer is None else upto_layer
    context = model.n_ctx if context is None else context
    matrices = (p.numel() for b in range(last + 1) for p in own_parameters(model.bridge.blocks[b]) if p.dim() >= 2)
    total = 2 * sum(matrices) + (last + 1) * 2 * cfg.n_heads * cfg.d_head * context
    if upto_layer is None:
        total += 2 * model.d_model * model.d_vocab
    return total
