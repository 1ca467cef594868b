"""The Hugging Face model under a bridge: its modules and its own parameters."""

from __future__ import annotations

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent


def unwrapped(module: nn.Module) -> nn.Module:
    """The Hugging Face module under the bridge's wrappers."""
    while isinstance(module, GeneralizedComponent):
        module = module.original_component  # type: ignore[assignment]
    return module


def own_parameters(module: nn.Module) -> list[Tensor]:
    """Parameters of the Hugging Face modules under `module`, tied ones once; without the copies of q, k and v that the
    bridge makes of some models' fused weight."""
    seen_modules: set[int] = set()
    found: dict[int, Tensor] = {}

    def walk(module: nn.Module) -> None:
        module = unwrapped(module)
        if id(module) in seen_modules:
            return
        seen_modules.add(id(module))
        found.update((id(p), p) for p in module._parameters.values() if p is not None)
        for child in module._modules.values():
            if child is not None:
                walk(child)

    walk(module)
    return list(found.values())


def model_parameters(bridge: TransformerBridge) -> list[Tensor]:
    """The language model's own parameters; not the all-zero unembedding bias that TransformerLens 3 adds."""
    parameters = own_parameters(bridge.original_model)
    bias = getattr(unwrapped(bridge.unembed), "bias", None)
    return [p for p in parameters if p is not bias or bool(p.any())]
