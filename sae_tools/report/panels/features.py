"""The columns of the table of all features."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_tools.report.columns import narrow
from sae_tools.report.contents import Contents, CorpusShown, DictionaryShown

COPIED = ("maximum", "mean_active", "b_enc", "projection", "cosine", "decoder_norm", "logit_norm")
TOKENS = 3
"""Tokens kept of those at the peaks."""
NONE = np.uint32(0xFFFFFFFF)
"""Stands where there are fewer."""


def dictionary(contents: Contents, shown: DictionaryShown) -> dict[str, Any]:
    """Per feature, as in its file: `fires` and COPIED. `best_match`: its best correlation in any other dictionary, 0 if
    none. `peak_token` [d_sae, 3]: the commonest tokens at the peaks of its top contexts, NONE if there are fewer.
    `logit_top`, `logit_bottom` [d_sae, 10], where it has logit weights: all that its file has, for the search.
    `training_fires`: on how many of the `training_tokens_window` tokens of the last window of training it fired, where
    there is a history."""
    arrays = shown.arrays
    columns: dict[str, Any] = {"fires": narrow(arrays["fires"])}
    columns |= {name: arrays[name] for name in COPIED if name in arrays}
    columns["best_match"] = best_match(shown)
    columns["peak_token"] = peak_tokens(shown, contents.corpus_of(shown))
    if shown.has_logits:
        columns["logit_top"] = narrow(arrays["logit_top_token"])
        columns["logit_bottom"] = narrow(arrays["logit_bottom_token"])
    if shown.windows:
        columns["training_fires"] = narrow(shown.windows[-1].fires.numpy())
        columns["training_tokens_window"] = shown.windows[-1].tokens
    return columns


def best_match(shown: DictionaryShown) -> np.ndarray:
    """float32 [d_sae]"""
    values = shown.arrays["match_value"]
    if values.shape[1] == 0:
        return np.zeros(shown.d_sae, np.float32)
    return np.maximum(values[:, :, 0].max(1), 0).astype(np.float32)


def peak_tokens(shown: DictionaryShown, corpus: CorpusShown) -> np.ndarray:
    """uint32 [d_sae, 3]: the commonest first; of equally common ones, that of the smaller id."""
    arrays = shown.arrays
    feature = np.repeat(np.arange(shown.d_sae), np.diff(arrays["example_start"]))
    top = arrays["example_group"] == 0
    token = corpus.tokens.reshape(-1)[arrays["example_token"][top]].astype(np.int64)
    size = len(corpus.vocabulary)
    pairs, counts = np.unique(feature[top] * size + token, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // size))  # by feature, then falling count, then token
    pairs = pairs[order]
    features = pairs // size
    rank = np.arange(len(pairs)) - np.searchsorted(features, features)
    found = np.full((shown.d_sae, TOKENS), NONE)
    shows = rank < TOKENS
    found[features[shows], rank[shows]] = pairs[shows] % size
    return found
