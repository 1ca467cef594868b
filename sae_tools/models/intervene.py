"""Interventions: replace, ablate, add or pin at a site, and run on to the logits.

    clean = run_and_capture(model, tokens, [site])
    spliced = logits_with_edits(model, tokens, [replace(site, reconstruction)], prefix=clean.prefix)

`prefix` spares the layers before the edited one, which compute what they did in the clean run: with many variants on
the same tokens (original, zero, mean, one per dictionary) that is most of the cost in a late layer. Everything runs
through the plain view (models/plain.py) where it holds the sites, else through the bridge. Not thread-safe. Gradients
flow through edits when grad mode is on; the model's own parameters are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_tools.errors import UserError
from sae_tools.models.capture import Activations, Stop, capture, first_tensor, reading, trusted_view
from sae_tools.models.language_model import LanguageModel, refuse_processed
from sae_tools.models.plain import PlainView, Side
from sae_tools.models.sites import HOOKS, Site, resolve_site

EditFunction = Callable[[Float[Tensor, "batch position d"]], Float[Tensor, "batch position d"]]
Where = Bool[Tensor, "batch position"]


@dataclass(frozen=True)
class Edit:
    """What happens to the activations at one site during a forward pass.

    At `resid_mid` the stream itself is edited, for the MLP and for what passes by it, by changing what attention adds
    to it (TransformerLens's hook there changes only what the MLP reads).
    """

    site: Site
    function: EditFunction
    """From the site's activations to what the model goes on with; same shape. It must not write to its input."""
    where: Where | None = None
    """Tokens at which the edit applies; everywhere if None."""

    def __call__(self, activation: Float[Tensor, "batch position d"]) -> Float[Tensor, "batch position d"]:
        edited = self.function(activation).to(activation.dtype)
        if edited.shape != activation.shape:
            edited = edited.expand_as(activation)  # a vector stands for every token; other shapes raise RuntimeError
        return (
            edited if self.where is None else torch.where(self.where.to(edited.device)[..., None], edited, activation)
        )


def replace(site: Site, value: Tensor | EditFunction, *, where: Where | None = None) -> Edit:
    """The activations become `value`, a tensor [batch, position, d] or what broadcasts to it, or value(activations)."""
    if isinstance(value, Tensor):
        return Edit(site, lambda x: value.to(x.device, x.dtype), where)
    return Edit(site, value, where)


def zero_ablate(site: Site, *, where: Where | None = None) -> Edit:
    """The activations become 0."""
    return Edit(site, torch.zeros_like, where)


def mean_ablate(site: Site, mean: Float[Tensor, " d"], *, where: Where | None = None) -> Edit:
    """The activations become their mean over tokens, as given."""
    return replace(site, mean, where=where)


def add(site: Site, vector: Float[Tensor, "... d"], *, where: Where | None = None) -> Edit:
    """Steering: `vector` is added."""
    return Edit(site, lambda x: x + vector.to(x.device, x.dtype), where)


def pin(site: Site, direction: Float[Tensor, " d"], value: float | Tensor, *, where: Where | None = None) -> Edit:
    """The component along `direction` becomes `value`, the rest stays: x + (value − x·n) n with the unit vector n.

    direction: need not be a unit vector; ValueError if it is zero.
    value: of x·n; a number, or one for each token [batch, position].
    """
    norm = direction.norm()
    if not norm > 0:
        raise ValueError("a direction to pin must not be zero")

    def pinned(x: Tensor) -> Tensor:
        unit = (direction / norm).to(x.device, x.dtype)
        target = torch.as_tensor(value, dtype=x.dtype, device=x.device)[..., None]
        return x + (target - (x @ unit)[..., None]) * unit

    return Edit(site, pinned, where)


@dataclass(frozen=True)
class Prefix:
    """Where a run on the same tokens may start again: outputs of whole layers."""

    tokens: Int[Tensor, "batch position"]
    outputs: Mapping[int, Any] = field(default_factory=dict)
    """By layer: what the layer's module returned."""

    def repeated(self, times: int, length: int) -> Prefix:
        """For `times` copies of the first `length` positions of its one context. (ValueError if it has several.)"""
        if self.tokens.shape[0] != 1:
            raise ValueError("only a prefix of one context can be repeated")

        def expand(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[:, :length].expand(times, -1, *value.shape[2:])
            return tuple(expand(part) for part in value) if isinstance(value, tuple) else value

        outputs = {layer: expand(value) for layer, value in self.outputs.items()}
        return Prefix(self.tokens[:, :length].expand(times, -1), outputs)


@dataclass(frozen=True)
class Forward:
    """A forward pass without edits."""

    logits: Float[Tensor, "batch position d_vocab"]
    activations: Activations
    """By the site's name; may share storage with each other: copy before writing."""
    prefix: Prefix
    """For `logits_with_edits` on the same tokens with edits at these sites (or in later layers)."""


def run_and_capture(model: LanguageModel, tokens: Int[Tensor, "batch position"], sites: Sequence[Site] = ()) -> Forward:
    """The model's logits, its activations at `sites`, and what a run with edits there can start from. No gradients."""
    refuse_processed(model.bridge)
    tokens = tokens.to(model.device)
    hooks = [site.hook_name for site in sites]
    view = trusted_view(model, hooks)
    with torch.no_grad():
        if view is None:
            logits, cache = _bridge_run(model, tokens, hooks)
            return Forward(logits, {site.name: cache[site.hook_name] for site in sites}, Prefix(tokens))
        box: Activations = {}
        outputs: dict[int, Any] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(reading(view, hooks, box, stop=False))
            for layer in {site.layer - 1 for site in sites if site.layer > 0}:
                stack.callback(view.blocks[layer].register_forward_hook(_keep_output(outputs, layer)).remove)
            logits = view.model(tokens, use_cache=False).logits
    return Forward(logits, {site.name: box[site.hook_name] for site in sites}, Prefix(tokens, outputs))


def capture_with_prefix(
    model: LanguageModel, tokens: Int[Tensor, "batch position"], sites: Sequence[Site]
) -> tuple[Activations, Prefix]:
    """As `run_and_capture`, but the pass ends with the last of the sites, so that there are no logits."""
    refuse_processed(model.bridge)
    tokens = tokens.to(model.device)
    hooks = [site.hook_name for site in sites]
    view = trusted_view(model, hooks)
    outputs: dict[int, Any] = {}
    with contextlib.ExitStack() as stack:
        for layer in {site.layer - 1 for site in sites if site.layer > 0 and view is not None}:
            assert view is not None
            stack.callback(view.blocks[layer].register_forward_hook(_keep_output(outputs, layer)).remove)
        box = capture(model, tokens, hooks)
    return {site.name: box[site.hook_name] for site in sites}, Prefix(tokens, outputs)


def stream_with_edits(
    model: LanguageModel,
    tokens: Int[Tensor, "batch position"],
    edits: Sequence[Edit],
    *,
    prefix: Prefix | None = None,
) -> Float[Tensor, "batch position d"]:
    """The last layer's `resid_post` in a forward pass in which every edit happens; as `logits_with_edits`, without the
    unembedding, which is most of the work after a late layer and most of the memory with a large vocabulary."""
    box: list[Tensor] = []

    def keep(resid: Tensor) -> Tensor:
        box.append(resid)
        raise Stop

    last = Edit(resolve_site(model, f"resid_post@{model.n_layers - 1}"), keep)
    with contextlib.suppress(Stop):
        logits_with_edits(model, tokens, [*edits, last], prefix=prefix)
    return box[0]


def logits_with_edits(
    model: LanguageModel,
    tokens: Int[Tensor, "batch position"],
    edits: Sequence[Edit],
    *,
    prefix: Prefix | None = None,
) -> Float[Tensor, "batch position d_vocab"]:
    """The logits of a forward pass in which every edit happens; several at one site apply in the order given.

    prefix: of an unedited run on the same tokens (ValueError on others); layers before the first edited one are then
    skipped where that run has kept their output. UserError for an edit that this model cannot have.
    """
    refuse_processed(model.bridge)
    tokens = tokens.to(model.device)
    edits = sorted(edits, key=lambda edit: _when(edit.site))
    for edit in edits:
        _check(model, edit.site)
    view = trusted_view(model, sorted({hook for edit in edits for hook in _hooks_needed(edit.site)}))
    if view is None:
        return _bridge_with_edits(model, tokens, edits)
    with contextlib.ExitStack() as stack:
        if prefix is not None:
            stack.enter_context(_skipping(view, tokens, prefix, before=min((e.site.layer for e in edits), default=0)))
        for edit in edits:
            for module, side, change in _changes(view, edit):
                stack.callback(_register(module, side, change).remove)
        return view.model(tokens, use_cache=False).logits


def _check(model: LanguageModel, site: Site) -> None:
    # Names are ours to check: TransformerLens 3 ignores an unknown one, and the intervention would do nothing.
    if site.hook_name not in model.bridge.hook_dict:
        resolve_site(model, site.name)


def _when(site: Site) -> tuple[int, int]:
    """Order of computation; what edits resid_mid must see the residual stream as edited before."""
    return site.layer, list(HOOKS).index(site.kind) if site.kind in HOOKS else 0


def _hooks_needed(site: Site) -> list[str]:
    if site.kind != "resid_mid":
        return [site.hook_name]
    return [HOOKS[kind].format(site.layer) for kind in ("resid_pre", "attn_out")]


# Through the plain view


def _changes(view: PlainView, edit: Edit) -> list[tuple[nn.Module, Side, EditFunction]]:
    located = [view.locate(hook) for hook in _hooks_needed(edit.site)]
    found = [place for place in located if place is not None]
    if edit.site.kind == "resid_mid":
        functions = _edit_stream_through_attention(edit)
    else:
        functions = [edit]
    return [(module, side, change) for (module, side), change in zip(found, functions, strict=True)]


def _edit_stream_through_attention(edit: Edit) -> list[EditFunction]:
    """Functions for resid_pre, which only looks, and attn_out, which becomes edit(pre + attn) − pre."""
    seen: list[Tensor] = []

    def look(pre: Tensor) -> Tensor:
        seen[:] = [pre]
        return pre

    def change(attn: Tensor) -> Tensor:
        mid = seen[0] + attn
        return attn + (edit(mid) - mid)

    return [look, change]


def _register(module: nn.Module, side: Side, change: EditFunction) -> Any:
    if side == "out":

        def after(_module: nn.Module, _args: Any, out: Any) -> Any:
            new = change(first_tensor(out))
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return module.register_forward_hook(after)

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _keep_output(outputs: dict[int, Any], layer: int) -> Callable[..., None]:
    def keep(_module: nn.Module, _args: Any, out: Any) -> None:
        outputs[layer] = out

    return keep


@contextlib.contextmanager
def _skipping(view: PlainView, tokens: Tensor, prefix: Prefix, *, before: int) -> Iterator[None]:
    """While open, the layers up to the last kept one below `before` return that one's output and compute nothing."""
    if not torch.equal(prefix.tokens, tokens):
        raise ValueError("the prefix comes from a run on other tokens")
    kept = max((layer for layer in prefix.outputs if layer < before), default=-1)
    skipped = view.blocks[: kept + 1]
    try:
        for block in skipped:
            block.forward = lambda *args, **kwargs: prefix.outputs[kept]  # on this view's own copy of the module
        yield
    finally:
        for block in skipped:
            block.__dict__.pop("forward", None)


# Through the bridge


def _bridge_run(model: LanguageModel, tokens: Tensor, hooks: Sequence[str]) -> tuple[Tensor, Activations]:
    box: Activations = {}

    def read(name: str) -> Callable[..., None]:
        def look(activation: Tensor, hook: Any) -> None:
            box[name] = activation.detach().clone()

        return look

    fwd_hooks: list[Any] = [(name, read(name)) for name in set(hooks)]
    logits = model.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=fwd_hooks)
    missing = sorted(set(hooks) - set(box))
    if missing:
        raise UserError(f"The hook {missing[0]} of {model.name} never fires.")
    return logits, box


def _bridge_with_edits(model: LanguageModel, tokens: Tensor, edits: Sequence[Edit]) -> Tensor:
    def apply(function: EditFunction) -> Callable[..., Tensor]:
        def change(activation: Tensor, hook: Any) -> Tensor:
            return function(activation)

        return change

    fwd_hooks: list[Any] = []
    for edit in edits:
        functions = _edit_stream_through_attention(edit) if edit.site.kind == "resid_mid" else [edit]
        fwd_hooks += [(name, apply(f)) for name, f in zip(_hooks_needed(edit.site), functions, strict=True)]
    return model.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=fwd_hooks)
