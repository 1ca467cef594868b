"""What a feature adds to the logits directly: top and bottom tokens, and the distribution over the vocabulary."""

from __future__ import annotations

from typing import Any

from sae_tools.report.columns import narrow
from sae_tools.report.contents import Contents, DictionaryShown


def features(contents: Contents, shown: DictionaryShown, chunk: slice) -> dict[str, Any]:
    """As in the feature file (analysis/logit_weights.py): `top_token`, `top_value`, `bottom_token`, `bottom_value`
    [n, 10], `histogram` [n, 40] over `range` [n, 2], `norm` [n]; nothing where the site has no fixed map there."""
    if not shown.has_logits:
        return {}
    arrays = {name: shown.arrays[f"logit_{name}"][chunk] for name in PARTS}
    whole = ("top_token", "bottom_token", "histogram")
    return {name: narrow(array) if name in whole else array for name, array in arrays.items()}


PARTS = ("top_token", "top_value", "bottom_token", "bottom_value", "histogram", "range", "norm")
