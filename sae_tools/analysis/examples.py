"""Where features fire: counts, histograms, top contexts and a fair sample of the rest, from sparse activations.

Top contexts show a feature at its strongest only; the sample from even intervals of (0, maximum] shows what its weak
activations are about (Bricken et al. 2023, 'Towards Monosemanticity', 'Activations and interpretability').
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

BINS = 44
"""Even intervals of (0, maximum] in a feature's histogram."""


class Windows(NamedTuple):
    """Where the examples' windows lie, int64 each; positions are places in the context."""

    context: Int64[Tensor, " examples"]
    first: Int64[Tensor, " examples"]
    """Position of the window's first token."""
    peak: Int64[Tensor, " examples"]
    """Position of the peak."""
    stop: Int64[Tensor, " examples"]
    """Position after the window's last token."""


@dataclass(frozen=True)
class Examples:
    """What a dictionary's features do on the corpus; fields are named as in the file (analysis/feature_files.py).

    Examples are sorted by feature; within a feature group 0 (the top contexts, best first), then the intervals from the
    strongest down, in each the larger value first; equal values by flat index. Values are activations with a decoder
    row of norm 1 in the dictionary's own space.
    """

    fires: Int64[Tensor, " d_sae"]
    """On how many tokens each feature is > 0."""
    maximum: Float32[Tensor, " d_sae"]
    """Largest activation; 0 if it never fires."""
    mean_active: Float32[Tensor, " d_sae"]
    """Mean of the activations > 0; 0 if there are none."""
    histogram: Int32[Tensor, "d_sae 44"]
    """Activations > 0 in even intervals of (0, maximum], each without its lower and with its upper end."""
    example_start: Int64[Tensor, " d_sae+1"]
    """Feature i has the examples from start[i] to start[i + 1]."""
    example_token: Int32[Tensor, " examples"]
    """Flat index of the token at the peak."""
    example_group: UInt8[Tensor, " examples"]
    """0: a top context; j >= 1: drawn from the j-th interval of (0, maximum], of which the last is the strongest."""
    example_value: Float32[Tensor, " examples"]
    """The activation at the peak."""
    window_start: Int64[Tensor, " examples+1"]
    """Example e has the window entries from start[e] to start[e + 1]."""
    window_offset: UInt8[Tensor, " entries"]
    """Place of the token counted from the window's first."""
    window_value: Float32[Tensor, " entries"]
    """The feature's activation there, > 0."""

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def feature(self) -> Int64[Tensor, " examples"]:
        """The feature of each example."""
        return torch.arange(len(self.fires)).repeat_interleave(self.example_start.diff())

    def rank(self) -> Int64[Tensor, " examples"]:
        """Place of each example among its feature's, 0 first."""
        return torch.arange(len(self.example_token)) - self.example_start[:-1].repeat_interleave(
            self.example_start.diff()
        )

    def windows(self, length: int, before: int, after: int) -> Windows:
        """Where the windows lie in contexts of `length` tokens: `before` tokens, the peak and `after` tokens, cut at
        the context's ends."""
        token = self.example_token.long()
        peak = token % length
        return Windows(token // length, (peak - before).clamp(min=0), peak, (peak + after + 1).clamp(max=length))
