"""A model's parameters: how many, how large, and a fingerprint of their values."""

from __future__ import annotations

import hashlib

import torch
from transformer_lens.model_bridge import TransformerBridge

from sae_tools.models.unwrap import model_parameters


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
