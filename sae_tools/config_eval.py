"""The settings of an evaluation (`sae-eval`, analysis/evaluation.py), documented where they stand.

Like config.py this imports no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sae_tools.config import Section
from sae_tools.config_sources import SourceConfig


class ControlsConfig(Section):
    """What must come out as known, and what comes out of a model that has learnt nothing."""

    enabled: bool = True
    tokens: int = Field(default=4_096, ge=1)
    """Tokens of the corpus (contexts at even distances) on which controls are measured."""


class ProbingConfig(Section):
    """k-sparse probes on labels that the text itself provides (analysis/probing.py)."""

    enabled: bool = True
    tokens: int = Field(default=16_384, ge=1)
    """Tokens of the corpus (contexts at even distances) whose activations are probed, train and test together."""
    k: list[int] = Field(default=[1, 2, 5, 16], min_length=1)
    """Numbers of features that a probe may use."""
    labels: Literal["auto", "python", "prose"] = "auto"
    """What the labels are read from: Python's own tokens, or prose; `auto`: Python where most documents parse."""
    per_class: int = Field(default=2_000, ge=10)
    """At most so many tokens with and without the label to train on, and as many to test on, drawn by `seed`."""

    @model_validator(mode="after")
    def _positive(self) -> ProbingConfig:
        if any(k < 1 for k in self.k):
            raise ValueError(f"k is {self.k}, and a probe uses at least one feature")
        return self


class EvalConfig(SourceConfig):
    """What is measured of dictionaries on held-out text."""

    tokens: int = Field(default=65_536, ge=1)
    """Held-out tokens on which everything is measured, fewer where there are fewer; whole contexts are read."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of resample ablation, of the shuffled weights, of what probes are trained on."""
    ultra_rare_below: float = Field(default=1e-4, gt=0)
    """Ultra-rare: fires, but on less than this share of the tokens."""
    dense_above: float = Field(default=0.1, gt=0, lt=1)
    controls: ControlsConfig = ControlsConfig()
    probing: ProbingConfig = ProbingConfig()
