"""Reading sites: one forward pass that stops as soon as the last site asked for has been computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_tools.models.language_model import LanguageModel
from sae_tools.models.plain import PlainView, Side, agree, check_tokens, plain_view

Activations = dict[str, Float[Tensor, "batch position d_site"]]


class Stop(Exception):
    """Raised by a hook when nothing that follows is wanted."""


def first_tensor(value: Any) -> Tensor:
    """Modules return a tensor or a tuple that starts with it (attention)."""
    return value[0] if isinstance(value, tuple) else value


def capture(
    model: LanguageModel, tokens: Int[Tensor, "batch position"], hooks: Sequence[str], *, use_view: bool = True
) -> Activations:
    """Activations at the hook points, by hook name, in the model's dtype, detached.

    Nothing runs after the last of them: no later layer, and never the unembedding. Through the plain view where it
    holds all of them (`trusted_view`), else through the bridge. Tensors may share storage with each other (`resid_post`
    of one layer and `resid_pre` of the next): copy before writing. Not thread-safe.
    """
    view = trusted_view(model, hooks) if use_view else None
    if view is None:
        return _capture_bridge(model, tokens, hooks)
    return _capture_view(view, tokens, hooks)


def trusted_view(model: LanguageModel, hooks: Sequence[str]) -> PlainView | None:
    """The plain view if it has every hook point and gives the bridge's values there, checked once per hook point."""
    view = plain_view(model)
    if view is None:
        return None
    if any(view.locate(hook) is None for hook in hooks):
        return None
    unknown = [hook for hook in hooks if hook not in view.trusted]
    if unknown:
        tokens = check_tokens(model)
        expected = _capture_bridge(model, tokens, unknown)
        try:
            found = _capture_view(view, tokens, unknown)
        except RuntimeError:  # a hook point whose module never runs
            found = {}
        view.trusted.update({hook: hook in found and agree(found[hook], expected[hook]) for hook in unknown})
    return view if all(view.trusted[hook] for hook in hooks) else None


def _capture_bridge(model: LanguageModel, tokens: Tensor, hooks: Sequence[str]) -> Activations:
    box: Activations = {}

    def read(name: str) -> Callable[..., None]:
        def look(activation: Tensor, hook: Any) -> None:
            box[name] = activation.detach()
            if len(box) == len(set(hooks)):
                raise Stop

        return look

    with torch.no_grad(), contextlib.suppress(Stop):
        model.bridge.run_with_hooks(tokens, return_type=None, fwd_hooks=[(name, read(name)) for name in set(hooks)])
    return _complete(box, hooks)


def _capture_view(view: PlainView, tokens: Tensor, hooks: Sequence[str]) -> Activations:
    box: Activations = {}
    with torch.no_grad(), contextlib.suppress(Stop), reading(view, hooks, box, stop=True):
        view.model.base_model(tokens, use_cache=False)  # type: ignore[operator]
    return _complete(box, hooks)


def _complete(box: Activations, hooks: Sequence[str]) -> Activations:
    missing = sorted(set(hooks) - set(box))
    if missing:
        raise RuntimeError(f"hook points that did not fire: {', '.join(missing)}")
    return box


@contextlib.contextmanager
def reading(view: PlainView, hooks: Sequence[str], box: Activations, *, stop: bool) -> Iterator[None]:
    """While open, every forward pass of the view puts the activations at the hook points into `box`; with `stop` it
    ends, by an exception, when the last of them is there."""
    wanted = set(hooks)

    def keep(name: str, activation: Tensor) -> None:
        box[name] = activation.detach()
        if stop and wanted <= box.keys():
            raise Stop

    with contextlib.ExitStack() as stack:
        for name in wanted:
            located = view.locate(name)
            assert located is not None, name
            stack.callback(_register(*located, name, keep).remove)
        yield


def _register(module: nn.Module, side: Side, name: str, keep: Callable[[str, Tensor], None]) -> Any:
    if side == "out":
        return module.register_forward_hook(lambda _module, _args, out: keep(name, first_tensor(out)))

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(name, args[0] if args else kwargs["hidden_states"])

    return module.register_forward_pre_hook(before, with_kwargs=True)
