"""The density history: for every window of training, on how many tokens each feature fired, and what happened to it.

A window is one safetensors file with `fires` (uint32 [d_sae]), `last_fired` (int64 [d_sae]), `event_features` (int64)
and, in its metadata, `tokens`, `start`, `end` and `events`. Windows add up: counts by addition, last_fired by maximum,
events by concatenation, so that the parts of a window from several processes, or all windows of a run, merge alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from sae_tools.errors import UserError
from sae_tools.runs.tensors import load_tensors, read_meta, save_tensors

MAX_FIRES = 2**32 - 1


@dataclass(frozen=True)
class Event:
    """Something that was done to features from outside."""

    tokens: int
    """Tokens trained on when it happened."""
    kind: str
    """E.g. `resampled`."""
    features: tuple[int, ...]


@dataclass(frozen=True)
class DensityWindow:
    """Exact firing counts of one dictionary over some tokens of training."""

    fires: Int64[Tensor, " d_sae"]
    """On how many of the tokens each feature was > 0."""
    last_fired: Int64[Tensor, " d_sae"]
    """Index of the last token of the step in which the feature last fired, counted from the run's first token as 0; -1:
    never yet. Firings before this window count too."""
    tokens: int
    """Tokens counted."""
    start: int
    """Tokens trained on before the window (the least, of merged ones)."""
    end: int
    """Tokens trained on at its end (the greatest)."""
    events: tuple[Event, ...] = ()

    def merge(self, other: DensityWindow) -> DensityWindow:
        """Both together. Raises ValueError if they are of dictionaries of different sizes."""
        if self.fires.shape != other.fires.shape:
            raise ValueError(f"windows of {len(self.fires)} and of {len(other.fires)} features cannot be merged")
        return DensityWindow(
            self.fires + other.fires,
            torch.maximum(self.last_fired, other.last_fired),
            self.tokens + other.tokens,
            min(self.start, other.start),
            max(self.end, other.end),
            self.events + other.events,
        )

    def save(self, path: Path) -> None:
        """Write the window's file, and its folder if need be. Raises UserError where no space is left."""
        if int(self.fires.max()) > MAX_FIRES:
            raise ValueError(f"a window counts up to {MAX_FIRES} firings of a feature; make it shorter")
        path.parent.mkdir(parents=True, exist_ok=True)
        features = [feature for event in self.events for feature in event.features]
        tensors = {
            "fires": self.fires.to(torch.uint32),
            "last_fired": self.last_fired,
            "event_features": torch.tensor(features, dtype=torch.int64),
        }
        events = [{"tokens": e.tokens, "kind": e.kind, "features": len(e.features)} for e in self.events]
        save_tensors(path, tensors, {"tokens": self.tokens, "start": self.start, "end": self.end, "events": events})

    @staticmethod
    def load(path: Path) -> DensityWindow:
        """The inverse of `save`. Raises UserError for a file that is missing, damaged or something else."""
        tensors, meta = load_tensors(path)
        try:
            features = iter(tensors["event_features"].tolist())
            events = tuple(
                Event(e["tokens"], e["kind"], tuple(next(features) for _ in range(e["features"])))
                for e in meta["events"]
            )
            fires, last_fired = tensors["fires"].to(torch.int64), tensors["last_fired"]
            return DensityWindow(fires, last_fired, meta["tokens"], meta["start"], meta["end"], events)
        except (KeyError, TypeError, RuntimeError):
            raise UserError(f"{path} is no window of a density history.") from None


def window_files(folder: Path) -> list[Path]:
    """The windows in a `density/` folder, in order; an absent folder has none."""
    found = [path for path in folder.glob("*.safetensors") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem))


def read_windows(folder: Path) -> list[DensityWindow]:
    """All windows in a `density/` folder, in order. Raises UserError for a damaged one."""
    return [DensityWindow.load(path) for path in window_files(folder)]


def merge_windows(windows: Iterable[DensityWindow]) -> DensityWindow:
    """All of them together; at least one."""
    return reduce(DensityWindow.merge, windows)


def drop_windows_after(folder: Path, tokens: int) -> None:
    """Remove the windows that end after `tokens` tokens: what a resumed run will count again."""
    for path in window_files(folder):
        if read_meta(path).get("end", -1) > tokens:
            path.unlink()
