"""A feature's neighbours by direction and by firing, here and in the other dictionaries."""

from __future__ import annotations

from typing import Any

from sae_tools.report.contents import Contents, DictionaryShown

ARRAYS = (
    "nearest_feature",
    "nearest_cosine",
    "antipode_feature",
    "antipode_cosine",
    "correlated_feature",
    "correlated_value",
    "match_feature",
    "match_value",
    "match_cosine",
)


def features(contents: Contents, shown: DictionaryShown, chunk: slice) -> dict[str, Any]:
    """ARRAYS as in the feature file: features as int32 (-1: none), float32 values; `match_*` [n, others, 3], in the
    order of the dictionary's `matches`."""
    return {name: shown.arrays[name][chunk] for name in ARRAYS}
