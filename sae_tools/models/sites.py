"""Sites: where in the model activations are read and edited, by short name and layer or by hook name."""

from __future__ import annotations

import difflib
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_acts": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}
"""Short names and TransformerLens's hooks, in the order of computation. `mlp_in` is what the MLP reads, the stream
after the norm before it; `mlp_acts` is what the MLP's output matrix reads (gated MLPs: act(gate) · up); `attn_out` and
`mlp_out` are what is added to the residual stream."""


@dataclass(frozen=True)
class Site:
    """A hook point of one layer."""

    kind: str
    """A key of HOOKS, or `hook` for any other hook point."""
    layer: int
    hook_name: str
    """TransformerLens's name, e.g. `blocks.3.hook_mlp_out`."""
    width: int
    """Size of the last dimension of its activations [batch, position, width]."""

    @property
    def name(self) -> str:
        """Canonical short name, e.g. `mlp_out@3`; the hook name where there is none."""
        return self.hook_name if self.kind == "hook" else f"{self.kind}@{self.layer}"


def available_sites(model: LanguageModel) -> list[str]:
    """Short names of all sites of the model, layer by layer in the order of computation."""
    hooks = model.bridge.hook_dict
    return [
        f"{kind}@{layer}"
        for layer in range(model.n_layers)
        for kind, hook in HOOKS.items()
        if hook.format(layer) in hooks
    ]


def resolve_site(model: LanguageModel, name: str) -> Site:
    """`mlp_out@3`, or a hook name — an alias as well as the canonical one. UserError naming the nearest valid sites
    where the model has no such site or layer (TransformerLens itself would ignore an unknown name)."""
    hooks = model.bridge.hook_dict
    short = re.fullmatch(r"(\w+)@(\d+)", name)
    if short:
        kind, layer = short[1], int(short[2])
        hook = HOOKS[kind].format(layer) if kind in HOOKS else None
        if hook in hooks and layer < model.n_layers:
            return Site(kind, layer, hook, _width(model, kind, layer))
    elif name in hooks and (match := re.match(r"blocks\.(\d+)\.", name)):
        layer = int(match[1])
        for kind, pattern in HOOKS.items():
            hook = pattern.format(layer)
            if hook in hooks and hooks[hook].name == hooks[name].name:
                return Site(kind, layer, hook, _width(model, kind, layer))
        return Site("hook", layer, name, _probe_width(model, name))
    raise UserError(_no_such_site(model, name))


def comes_before(model: LanguageModel, a: Site, b: Site) -> bool:
    """Whether `a` is computed before `b` in a forward pass; within a layer, hooks without a short name are compared by
    when they fire."""
    if a.layer != b.layer or a.hook_name == b.hook_name:
        return a.layer < b.layer
    if a.kind in HOOKS and b.kind in HOOKS:
        order = list(HOOKS)
        return order.index(a.kind) < order.index(b.kind)
    fired: list[str] = []
    hooks: list[Any] = [(name, lambda _x, hook, name=name: fired.append(name)) for name in (a.hook_name, b.hook_name)]
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        model.bridge.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
    return fired.index(a.hook_name) < fired.index(b.hook_name)


def _width(model: LanguageModel, kind: str, layer: int) -> int:
    if kind != "mlp_acts":
        return model.d_model
    W_out = getattr(model.bridge.blocks[layer].mlp, "W_out", None)
    if W_out is None or W_out.dim() != 2:
        raise UserError(
            f"Layer {layer} of {model.name} has no single MLP (a mixture of experts?): no site mlp_acts@{layer}."
        )
    return W_out.shape[0]


def _probe_width(model: LanguageModel, hook: str) -> int:
    """Reads the hook on two tokens: some hook points are listed but never fire, some hold heads or patterns."""
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about hooks that never fire; we say so ourselves
        _, cache = model.bridge.run_with_cache(tokens, names_filter=[hook])
    value = cache[hook] if hook in cache else None
    if value is None or value.dim() != 3 or value.shape[:2] != (1, 2):
        found = "it never fires" if value is None else f"its activations have shape {tuple(value.shape)}"
        raise UserError(f"The hook {hook} of {model.name} is no site ([batch, position, width] expected): {found}.")
    return value.shape[-1]


def _no_such_site(model: LanguageModel, name: str) -> str:
    """Nearest: the same kind in the nearest layer, the other kinds of that layer that look alike, or hook names."""
    names = available_sites(model)
    short = re.fullmatch(r"(.+)@(-?\d+)", name)
    if short:
        layer = min(max(int(short[2]), 0), model.n_layers - 1)
        here = [site for site in names if site.endswith(f"@{layer}")]
        near = difflib.get_close_matches(f"{short[1]}@{layer}", here, n=3, cutoff=0.5) or here
    else:
        near = difflib.get_close_matches(name, [*names, *model.bridge.hook_dict], n=3, cutoff=0.5) or names[:6]
    return (
        f"The model {model.name} ({model.n_layers} layers, 0 to {model.n_layers - 1}) has no site {name!r}; "
        f"nearest: {', '.join(near)}."
    )
