"""Where a feature fires: its top contexts and some of every interval of its activation, with ablation effects."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_tools.report.columns import narrow, quantise
from sae_tools.report.contents import Contents, DictionaryShown


def features(contents: Contents, shown: DictionaryShown, chunk: slice) -> dict[str, Any]:
    """The examples of the chunk's features, one after another.

    `example_start` [n + 1] within the chunk; per example `example_token`, `example_group`, `example_value`,
    `window_count`, `effect_measured`, `effect_count`; the counts say how many of `window_offset` and `window_value`
    (uint16, value = q / 65535 · the feature's maximum), of `effect_offset` and `effect_value` (int16, nats =
    q / 32767 · `effect_scale` of the feature) belong to each.
    """
    arrays = shown.arrays
    starts = arrays["example_start"][chunk.start : chunk.stop + 1]
    examples = slice(starts[0], starts[-1])
    windows = arrays["window_start"][starts[0] : starts[-1] + 1]
    effects = arrays["effect_start"][starts[0] : starts[-1] + 1]
    feature = np.repeat(np.arange(len(starts) - 1), np.diff(starts))  # of each example
    value = arrays["window_value"][windows[0] : windows[-1]]
    maximum = arrays["maximum"][chunk][np.repeat(feature, np.diff(windows))]
    effect = arrays["effect_value"][effects[0] : effects[-1]]
    of_effect = np.repeat(feature, np.diff(effects))
    scale = np.zeros(len(starts) - 1, np.float32)
    np.maximum.at(scale, of_effect, np.abs(effect))
    return {
        "example_start": narrow(starts - starts[0]),
        "example_token": narrow(arrays["example_token"][examples]),
        "example_group": arrays["example_group"][examples],
        "example_value": arrays["example_value"][examples],
        "window_count": narrow(np.diff(windows)),
        "window_offset": arrays["window_offset"][windows[0] : windows[-1]],
        "window_value": quantise(value, maximum, 65535),
        "effect_measured": arrays["effect_measured"][examples].astype(np.uint8),
        "effect_count": narrow(np.diff(effects)),
        "effect_offset": arrays["effect_offset"][effects[0] : effects[-1]],
        "effect_value": quantise(effect, scale[of_effect], 32767),
        "effect_scale": scale,
    }
