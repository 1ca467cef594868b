"""A plain Hugging Face view of a bridge: the same parameters without hooks, with fused attention.

The bridge computes attention step by step and wraps every module, which costs up to half of a forward pass. The view
shares its parameters (no extra memory) and its modules are found through the bridge's own hook points, so that sites
keep their TransformerLens names in every architecture. Nothing is taken on trust: logits and each site are compared
with the bridge's on a few tokens before they are used, and whoever uses the view falls back to the bridge otherwise.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from sae_tools.models.language_model import LanguageModel, refuse_processed
from sae_tools.models.unwrap import unwrapped

Side = Literal["in", "out"]
FINAL_RESID = "ln_final.hook_in"
"""Hook name of the final norm's input: the last layer's resid_post."""


@dataclass(eq=False)
class PlainView:
    """A parameter-sharing copy of the bridge's Hugging Face model, evaluation only."""

    model: nn.Module
    """Called as `model(tokens, use_cache=False).logits`; `model.base_model` has no unembedding."""
    blocks: list[nn.Module]
    """By layer."""
    copies: dict[int, nn.Module]
    """The view's module for each of the bridge's Hugging Face modules, by id."""
    bridge: TransformerBridge
    trusted: dict[str, bool] = field(default_factory=dict)
    """By hook name: whether it was found equal to the bridge's."""

    def locate(self, hook_name: str) -> tuple[nn.Module, Side] | None:
        """The module whose input or output the hook holds; None for hooks inside a module (attention patterns, …)."""
        path, _, side = str(self.bridge.hook_dict[hook_name].name).rpartition(".hook_")
        if side not in ("in", "out"):
            return None
        try:
            module = self.copies.get(id(unwrapped(self.bridge.get_submodule(path))))
        except AttributeError:
            return None
        return None if module is None else (module, side)


def plain_view(model: LanguageModel) -> PlainView | None:
    """The model's view, built on first use and kept with it; None where no view computes the bridge's logits."""
    refuse_processed(model.bridge)
    key = (model.device, model.dtype)  # moving a bridge replaces its buffers, which the view would not see
    if model.view_cache.get("key") != key:
        model.view_cache.update(key=key, view=_build(model))
    return model.view_cache["view"]


def _build(model: LanguageModel) -> PlainView | None:
    tokens = check_tokens(model)
    with torch.no_grad():
        expected = model.bridge(tokens, return_type="logits")
        for attention in ("sdpa", "eager"):
            try:
                view = strip(model.bridge, attention)
                logits = view.model(tokens, use_cache=False).logits
            except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
                continue  # an architecture that sdpa cannot compute (Gemma-2's soft cap), or with parts of its own
            if agree(logits, expected):
                return view
    return None


def check_tokens(model: LanguageModel) -> Tensor:
    """Two short contexts of tokens spread over the vocabulary, the same every time."""
    length = min(8, model.n_ctx)
    tokens = torch.arange(2 * length).view(2, length) * 7919 % model.d_vocab
    return tokens.to(model.device)


def agree(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding: 1e-4 of the largest value in float32, a few percent in half precision."""
    tolerance = 1e-4 if a.dtype in (torch.float32, torch.float64) else 5e-2
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


def strip(bridge: TransformerBridge, attention: str) -> PlainView:
    """Copies the module tree without wrappers and hooks; parameters and buffers are the bridge's own tensors.

    The view is a snapshot of the tree: it sees weights edited in place, not parameters that were replaced.
    """
    config: Any = copy.deepcopy(bridge.original_model.config)
    config._attn_implementation = attention
    copies: dict[int, nn.Module] = {}

    def stripped(module: nn.Module) -> nn.Module:
        module = unwrapped(module)
        if id(module) not in copies:
            copies[id(module)] = _copied(module, config)
            for name, child in module._modules.items():
                copies[id(module)]._modules[name] = None if child is None else stripped(child)
        return copies[id(module)]

    view = stripped(bridge.original_model)
    blocks = [stripped(block) for block in bridge.blocks]
    return PlainView(view, blocks, copies, bridge)


def _copied(module: nn.Module, config: Any) -> nn.Module:
    if type(module).__name__ == "NewGELUActivation":
        return nn.GELU("tanh")  # the same function (to 1e-7) in one kernel instead of seven
    new = copy.copy(module)
    new._parameters, new._buffers, new._modules = dict(module._parameters), dict(module._buffers), {}
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(new, hooks, OrderedDict())
    if "config" in new.__dict__:
        new.__dict__["config"] = config
    return new
