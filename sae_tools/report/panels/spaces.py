"""Trained in one space, measured in the others; and how many features have a counterpart in another dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_tools.report.contents import Contents, DictionaryShown


def report(contents: Contents) -> dict[str, Any]:
    """`ids`, `spaces`, and by id: `fvu` by space, `fvu_trained`, `ce_recovered`, `kl` (null: not measured), and
    `matches` by other id (`match_summary`)."""
    measured = {shown.id: shown.fidelity for shown in contents.dictionaries if shown.fidelity is not None}
    spaces = dict.fromkeys(space for entry in measured.values() for space in entry["fvu"])
    ids = [shown.id for shown in contents.dictionaries]
    return {
        "ids": ids,
        "spaces": list(spaces),
        **{
            key: {id: measured[id].get(key) if id in measured else None for id in ids}
            for key in ("fvu", "fvu_trained", "ce_recovered", "kl")
        },
        "matches": {shown.id: match_summary(shown) for shown in contents.dictionaries},
    }


def match_summary(shown: DictionaryShown) -> dict[str, dict[str, float | None]]:
    """By other dictionary, over the features that fired: `median` of their best correlation there, and the share
    `above_half` of those in which it exceeds 0.5; null where no feature fired."""
    live = shown.arrays["fires"] > 0
    summary = {}
    for d, other in enumerate(shown.meta["matches"]):
        best = shown.arrays["match_value"][live, d, 0]
        known = len(best) > 0
        summary[other] = {
            "median": float(np.median(best)) if known else None,
            "above_half": float((best > 0.5).mean()) if known else None,
        }
    return summary
