"""The settings with which dictionaries are opened to be studied (analysis/sources.py): by `sae-report` and `sae-eval`.

Like config.py this imports no torch.
"""

from __future__ import annotations

from pydantic import Field

from sae_tools.config import DataConfig, ModelConfig, RowsConfig, Section


class SourceConfig(Section):
    """What a run says itself, and an SAE of others may leave open."""

    site: str | None = None
    """Where an SAE reads that is no run of ours, e.g. `resid_post@3` or a hook name; null: what its metadata says."""
    writes: str | None = None
    """Where such a transcoder writes; null: what its metadata says."""
    model: ModelConfig | None = None
    """The language model of an SAE that is no run of ours; null: what its metadata says."""
    data: DataConfig | None = None
    """The text on which such an SAE is studied; null: what its metadata says, else the defaults. Its held-out part is
    read; all of it (heldout: 1) where it is a local one that the metadata does not name, unless `heldout` is set."""
    rows: RowsConfig | None = None
    """Which tokens count for such an SAE; null: what its metadata says, else the defaults."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, …"""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null leaves torch's choice."""
