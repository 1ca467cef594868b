"""What a model costs: parameters, and FLOPs per token of a forward pass."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from transformer_lens.model_bridge import TransformerBridge

from sae_tools.models.unwrap import model_parameters, own_parameters

if TYPE_CHECKING:
    from sae_tools.models.language_model import LanguageModel


def parameter_count(bridge: TransformerBridge) -> int:
    """Parameters of the language model itself, tied ones once; as transformers' `num_parameters()`."""
    return sum(parameter.numel() for parameter in model_parameters(bridge))


def memory_bytes(bridge: TransformerBridge) -> int:
    """Bytes of the bridge's parameters and buffers by unique storage: with the copies that TransformerLens makes of
    some models' q, k and v."""
    tensors = [*bridge.parameters(), *bridge.buffers()]
    storages = {(str(x.device), x.untyped_storage().data_ptr()): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def weights_fingerprint(bridge: TransformerBridge, *, samples: int = 1024) -> str:
    """32 hex digits over shape, dtype and some `samples` evenly spaced values of every parameter: cheap, and enough to
    tell one checkpoint from another; not a checksum of every bit. Does not depend on names."""
    parts = []
    for parameter in model_parameters(bridge):
        flat = parameter.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // samples)].to("cpu", torch.float32).numpy().tobytes()
        about = f"{tuple(parameter.shape)} {parameter.dtype} ".encode()
        parts.append(hashlib.blake2b(about + values, digest_size=16).digest())
    return hashlib.blake2b(b"".join(sorted(parts)), digest_size=16).hexdigest()


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
