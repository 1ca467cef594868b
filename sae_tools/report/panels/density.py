"""On how many tokens each feature fired in every window of training, and what was done to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_tools.report.columns import narrow
from sae_tools.report.contents import Contents, DictionaryShown


def dictionary(contents: Contents, shown: DictionaryShown) -> dict[str, Any]:
    """`fires` [windows, d_sae]; `tokens` counted and `end` of each window; `events`. Nothing for one without history.

    In a blob of its own (`density/<id>`), since it is the largest of a dictionary's.
    """
    if not shown.windows:
        return {}
    return {
        "fires": narrow(np.stack([window.fires.numpy() for window in shown.windows])),
        "tokens": np.array([window.tokens for window in shown.windows], np.float64),
        "end": np.array([window.end for window in shown.windows], np.float64),
        "events": [
            {"tokens": event.tokens, "kind": event.kind, "features": list(event.features)}
            for window in shown.windows
            for event in window.events
        ],
    }
