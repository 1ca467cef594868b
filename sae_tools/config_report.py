"""The settings of a feature report (`sae-report`, analysis/features.py), documented where they stand.

Like config.py this imports no torch.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from sae_tools.config_sources import SourceConfig


class ReportConfig(SourceConfig):
    """What is measured for a feature report, and how it is shown."""

    tokens: int = Field(default=131_072, ge=1)
    """Held-out tokens on which features are measured, fewer where there are fewer; whole contexts are read."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the random choice of contexts in each interval."""
    top: int = Field(default=10, ge=1, le=1000)
    """Top contexts of a feature, all different."""
    intervals: int = Field(default=11, ge=1, le=255)
    """Even intervals of (0, maximum] from which contexts are drawn, so that weak activations are seen too."""
    per_interval: int = Field(default=2, ge=0, le=1000)
    """Tokens drawn from each interval, each as likely as any other of the interval."""
    before: int = Field(default=20, ge=0, le=255)
    """Tokens shown before the peak of a context (fewer at the context's beginning)."""
    after: int = Field(default=11, ge=0, le=255)
    """Tokens shown after it (fewer at the context's end)."""
    effect_contexts: int | None = Field(default=None, ge=0)
    """Contexts of a feature for which the effect of ablating it is measured, 0: none; null: all of them where nothing
    after the site mixes positions (the last layer), the top one elsewhere, where each costs a pass of the model."""
    neighbours: int = Field(default=5, ge=1, le=1000)
    """Nearest, and most correlated, features of the same dictionary."""
    matches: int = Field(default=3, ge=1, le=1000)
    """Most correlated features in each other dictionary."""
    logits: int = Field(default=10, ge=1, le=1000)
    """Top and bottom tokens by logit weight."""
    chunk: int = Field(default=256, ge=1)
    """Features in one piece of the report's data; a piece is decompressed when one of them is looked at."""
    shard_above: int = Field(default=20_000, ge=0)
    """With more features than this, in all dictionaries together, the report is a folder instead of one file."""

    @model_validator(mode="after")
    def _window_fits(self) -> ReportConfig:
        if self.before + self.after > 255:
            raise ValueError(
                f"before + after is {self.before + self.after}, and a window holds at most 255 tokens beside its peak"
            )
        return self
