"""Accumulators of an evaluation, and the entry of evaluation.json that they end as.

Tokens are either `rows` (`RowsConfig`: by default all but the first of a context, BOS, and special tokens) or `all`.
Behaviour is kept for both choices of the tokens that are edited and both of the predictions that count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_tools.analysis.behaviour import recovered
from sae_tools.analysis.density import FiringCounts
from sae_tools.analysis.losses import Behaviour, PositionLosses, TokenLosses
from sae_tools.analysis.reconstruction import ReconstructionQuality, VarianceUnexplained
from sae_tools.analysis.splicing import BASELINES
from sae_tools.analysis.subject import Subject
from sae_tools.models.sites import Site

Which = Literal["rows", "all"]
TOKENS: tuple[Which, ...] = ("rows", "all")
Masks = dict[Which, Bool[Tensor, "batch position"]]


@dataclass
class Splices:
    """What one edit does to the predictions, for each choice of edited tokens and of predictions that count."""

    length: int
    sums: dict[tuple[Which, Which], PositionLosses] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = {(edited, counted): PositionLosses(self.length) for edited in TOKENS for counted in TOKENS}

    def update(self, edited: Which, losses: TokenLosses, masks: Masks) -> None:
        for counted, mask in masks.items():
            self.sums[edited, counted].update(losses, mask)

    def update_both(self, losses: TokenLosses, masks: Masks) -> None:
        """Where no token is left out, editing rows is editing all."""
        for edited in TOKENS:
            self.update(edited, losses, masks)

    def merge(self, other: Splices) -> None:
        for key, sums in self.sums.items():
            sums.merge(other.sums[key])


@dataclass
class SiteSums:
    """Accumulators of the ablations of one site, by the ablation's name."""

    site: Site
    length: int
    ablated: dict[str, Splices] = field(init=False)

    def __post_init__(self) -> None:
        self.ablated = {name: Splices(self.length) for name in BASELINES}

    def merge(self, other: SiteSums) -> None:
        for name, splices in self.ablated.items():
            splices.merge(other.ablated[name])


def position_bins(length: int) -> list[tuple[int, int]]:
    """(first, stop) of 0, 1, 2-3, 4-7, … up to the context's length."""
    edges = [0]
    while edges[-1] < length:
        edges.append(min(length, max(1, 2 * edges[-1])))
    return list(zip(edges[:-1], edges[1:], strict=True))


@dataclass
class SubjectSums:
    """Accumulators of one dictionary."""

    d_sae: int
    length: int
    spaces: list[str]
    """Measuring spaces (`forward_chain`)."""
    density: FiringCounts = field(init=False)
    quality: dict[str, ReconstructionQuality] = field(init=False)
    """By measuring space, and `site`: in the coordinates of the site that is written to."""
    own: VarianceUnexplained = field(default_factory=VarianceUnexplained)
    """In the very coordinates of training."""
    everywhere: ReconstructionQuality = field(default_factory=ReconstructionQuality)
    """At the site, over all tokens."""
    bins: list[VarianceUnexplained] = field(init=False)
    """At the site, over rows, by position."""
    active: Float[Tensor, "kinds length"] = field(init=False)
    """By position: rows, features active at them; other tokens, features active at them."""
    outside: Float[Tensor, " kinds"] = field(init=False)
    """At tokens that are no rows: Σ‖x - x̂‖² and Σ‖x‖²."""
    spliced: Splices = field(init=False)

    def __post_init__(self) -> None:
        self.density = FiringCounts(self.d_sae)
        self.quality = {name: ReconstructionQuality() for name in ("site", *self.spaces)}
        self.bins = [VarianceUnexplained() for _ in position_bins(self.length)]
        self.active = torch.zeros(4, self.length, dtype=torch.float64)
        self.outside = torch.zeros(2, dtype=torch.float64)
        self.spliced = Splices(self.length)

    def update(
        self,
        y: Float[Tensor, "tokens d"],
        y_hat: Float[Tensor, "tokens d"],
        active: Int[Tensor, " tokens"],
        position: Int[Tensor, " tokens"],
        row: Bool[Tensor, " tokens"],
    ) -> None:
        """All tokens of a batch: what was to be reconstructed at the written site and what was made of it, how many
        features that took, and which of the tokens are rows."""
        self.everywhere.update(y, y_hat)
        self._count(0, active[row], position[row])
        self._count(2, active[~row], position[~row])
        error, square = (y - y_hat)[~row].double().pow(2).sum(), y[~row].double().pow(2).sum()
        self.outside += torch.stack([error, square]).cpu()
        y, y_hat, position = y[row], y_hat[row], position[row]
        self.quality["site"].update(y, y_hat)
        for (first, stop), sums in zip(position_bins(self.length), self.bins, strict=True):
            inside = (position >= first) & (position < stop)
            if inside.any():
                sums.update(y[inside], y_hat[inside])

    def _count(self, at: int, active: Int[Tensor, " some"], position: Int[Tensor, " some"]) -> None:
        position, active = position.cpu(), active.cpu()
        self.active[at] += torch.bincount(position, minlength=self.length)
        self.active[at + 1] += torch.bincount(position, active.double(), minlength=self.length)

    def merge(self, other: SubjectSums) -> None:
        self.density.merge(other.density)
        for name, quality in self.quality.items():
            quality.merge(other.quality[name])
        self.own.merge(other.own)
        self.everywhere.merge(other.everywhere)
        for mine, its in zip(self.bins, other.bins, strict=True):
            mine.merge(its)
        self.active += other.active
        self.outside += other.outside
        self.spliced.merge(other.spliced)

    # ---------------------------------------------------------------------------------------------------- the figures

    def finish(
        self, subject: Subject, original: Splices, site: SiteSums, ultra_rare: float, dense: float
    ) -> dict[str, Any]:
        """One dictionary's entry; the keys of fidelity.json (analysis/fidelity.py) mean here what they mean there.

        - `reconstruction`: `ReconstructionQuality.finish` in each space, `site` being the written site's coordinates.
        - `ce`, `kl`, …: `behaviour`, edited at rows and counted at rows.
        - `with_bos`: reconstruction and L0 over all tokens, and behaviour for the other choices, e.g.
          `edited_all_counted_rows`: the edit is made at every token, BOS and special ones too, and only predictions
          made at rows count. `not_rows`: the tokens that are no rows alone; `relative_error` is Σ‖x - x̂‖² / Σ‖x‖².
        - `positions`: by position in the context (`first` to before `stop`), edited at rows and counted at rows;
          `fvu` against the mean of the bin's own tokens, at the site.
        """
        quality = {name: sums.finish() for name, sums in self.quality.items()}
        rows, rest = self.active[:2].sum(1), self.active[2:].sum(1)
        error, square = self.outside.tolist()
        others: list[tuple[Which, Which]] = [("rows", "all"), ("all", "rows"), ("all", "all")]
        return {
            "site": subject.site.name,
            "space": subject.space.kind,
            "writes": None
            if subject.target_space is None
            else {"site": subject.written_site.name, "space": subject.target_space.kind},
            "d_sae": self.d_sae,
            "tokens": self.density.tokens,
            **self.density.finish(ultra_rare, dense),
            "fvu_trained": self.own.finish(),
            "fvu": {name: quality[name]["fvu"] for name in self.spaces},
            "reconstruction": quality,
            "ablated_site": site.site.name,
            **behaviour(original, self.spliced, site, "rows", "rows"),
            "with_bos": {
                "tokens": self.everywhere.unexplained.tokens,
                "l0": float((rows[1] + rest[1]) / (rows[0] + rest[0]).clamp(min=1)),
                "reconstruction": self.everywhere.finish(),
                "not_rows": {
                    "tokens": int(rest[0]),
                    "l0": float(rest[1] / rest[0]) if rest[0] else float("nan"),
                    "relative_error": error / square if square else float("nan"),
                },
                **{
                    f"edited_{edited}_counted_{counted}": behaviour(original, self.spliced, site, edited, counted)
                    for edited, counted in others
                },
            },
            "positions": self._by_position(original),
        }

    def _by_position(self, original: Splices) -> list[dict[str, Any]]:
        found = []
        for (first, stop), fvu in zip(position_bins(self.length), self.bins, strict=True):
            if not fvu.tokens:
                continue
            spliced = self.spliced.sums["rows", "rows"].finish(first, stop)
            active = float(self.active[1, first:stop].sum())
            found.append(
                {
                    "first": first,
                    "stop": stop,
                    "tokens": fvu.tokens,
                    "predictions": spliced.predictions,
                    "ce_original": original.sums["rows", "rows"].finish(first, stop).ce,
                    "ce_reconstruction": spliced.ce,
                    "kl": spliced.kl,
                    "fvu": fvu.finish(),
                    "l0": active / fvu.tokens,
                }
            )
        return found


def behaviour(original: Splices, spliced: Splices, site: SiteSums, edited: Which, counted: Which) -> dict[str, Any]:
    """What the splice does to the predictions, beside what the ablations do.

    - `ce`: next-token cross-entropy in nats: `original`, `reconstruction`, and ablated to `zero`, to the `mean` over
      rows, or to another random token's activation (`resample`). `ablation_cost`: ablated - original.
    - `ce_recovered`: (ablated - reconstruction) / (ablated - original) for each ablation.
    - `kl`: KL(original ‖ spliced) in nats over the same predictions, `kl_every_position` with the last positions too;
      `kl_ablated`; `kl_recovered`: 1 - kl / kl_ablated.
    """
    clean = original.sums["rows", counted].finish()
    mine = spliced.sums[edited, counted].finish()
    ablated: dict[str, Behaviour] = {
        name: splices.sums[edited, counted].finish() for name, splices in site.ablated.items()
    }
    ces = {name: found.ce for name, found in ablated.items()}
    return {
        "predictions": mine.predictions,
        "ce": {"original": clean.ce, "reconstruction": mine.ce, **ces},
        "ablation_cost": {name: ce - clean.ce for name, ce in ces.items()},
        "ce_recovered": {name: recovered(mine.ce, ce, clean.ce) for name, ce in ces.items()},
        "kl": mine.kl,
        "kl_every_position": mine.kl_every_position,
        "kl_ablated": {name: found.kl for name, found in ablated.items()},
        "kl_recovered": {name: recovered(mine.kl, found.kl, 0.0) for name, found in ablated.items()},
    }
