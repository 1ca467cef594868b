"""Exact firing counts of one dictionary while it trains, on its device, cut into windows."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from sae_tools.runs.density import DensityWindow, Event


class DensityCounter:
    """Counts on which tokens features fired. `update` and `dead` never synchronise with the device."""

    def __init__(self, d_sae: int, device: torch.device | str = "cpu"):
        self.fires: Int64[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64, device=device)
        """In the open window."""
        self.last_fired: Int64[Tensor, " d_sae"] = torch.full((d_sae,), -1, dtype=torch.int64, device=device)
        """Index of the last token of the step in which the feature last fired; -1: never."""
        self.tokens: Int64[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        """Tokens counted from the start of training."""
        self.start: Int64[Tensor, ""] = torch.zeros((), dtype=torch.int64, device=device)
        """Of these, before the open window."""
        self.events: list[tuple[str, int, Tensor]] = []
        """(kind, tokens, features) in the open window."""

    @torch.no_grad()
    def update(self, fired: Int[Tensor, " d_sae"], n_tokens: int | Tensor) -> None:
        """fired: on how many of the step's `n_tokens` tokens each feature was > 0.

        n_tokens may be a tensor on the device: 0, with `fired` all 0, for a step that was not taken.
        """
        self.tokens += n_tokens.to(torch.int64) if isinstance(n_tokens, Tensor) else n_tokens
        self.fires += fired
        self.last_fired = torch.where(fired > 0, self.tokens - 1, self.last_fired)

    def dead(self, tokens: int, window: int) -> Bool[Tensor, " d_sae"]:
        """Which features fired on none of the last `window` of `tokens` tokens trained on (none, before so many)."""
        return self.last_fired < tokens - window

    def event(self, kind: str, features: Int[Tensor, " n"], tokens: int) -> None:
        """Something was done to `features` when `tokens` tokens had been trained on; it goes into the open window."""
        self.events.append((kind, tokens, features.detach().to(self.fires.device, torch.int64).clone()))

    def window(self, tokens: int) -> DensityWindow:
        """The open window so far; tokens: trained on by now. Waits for the device."""
        start, counted = torch.stack([self.start, self.tokens]).tolist()
        events = tuple(Event(at, kind, tuple(features.tolist())) for kind, at, features in self.events)
        return DensityWindow(
            self.fires.cpu().clone(), self.last_fired.cpu().clone(), counted - start, start, tokens, events
        )

    def close_window(self, path: Path, tokens: int) -> None:
        """Write the open window to `path` and start the next. Raises UserError where no space is left."""
        self.window(tokens).save(path)
        self.fires.zero_()
        self.start = self.tokens.clone()
        self.events = []

    def state(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint: a resumed run goes on counting in the same window."""
        state = {name: getattr(self, name) for name in ("fires", "last_fired", "tokens", "start")}
        for i, (kind, tokens, features) in enumerate(self.events):
            state[f"event.{i}.{tokens}.{kind}"] = features
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises RuntimeError or KeyError if it is of a dictionary of another size."""
        device = self.fires.device
        for name in ("fires", "last_fired", "tokens", "start"):
            if state[name].shape != getattr(self, name).shape:
                raise RuntimeError(f"{name} has shape {list(state[name].shape)}")
            setattr(self, name, state[name].to(device, torch.int64).clone())
        events = {name: value for name, value in state.items() if name.startswith("event.")}
        self.events = []
        for name in sorted(events, key=lambda name: int(name.split(".")[1])):
            _, _, tokens, kind = name.split(".", 3)
            self.events.append((kind, int(tokens), events[name].to(device).clone()))
