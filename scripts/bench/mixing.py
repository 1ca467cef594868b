"""How well a job's buffer mixes documents: same-document pairs in a batch, against a perfect shuffle of the same rows.

    python scripts/bench/mixing.py [CONFIG] [BATCHES] [key=value …]

Reads the job's own stream and buffer; only the site is replaced by the embedding, which is cheap and changes no row.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.activations.harvest import Harvester
from sae_tools.activations.mixing import measure_mixing
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.models.load import load_model
from sae_tools.models.sites import resolve_site
from sae_tools.training.job import open_stream


def main() -> None:
    config, batches, *overrides = [*sys.argv[1:], *["configs/quickstart.yaml", "500"][len(sys.argv) - 1 :]]
    cfg = load_config(JobConfig, Path(config), overrides)
    model = load_model(cfg.model.name, revision=cfg.model.revision, dtype=cfg.model.dtype)
    harvester = Harvester(model, [resolve_site(model, "resid_pre@0")], cfg.rows)
    size = cfg.training.batch_size
    buffer = ShuffleBuffer(
        open_stream(cfg, model), harvester, rows=cfg.buffer.rows, batch_size=size, seed=cfg.seed, device="cpu"
    )
    found = measure_mixing(rows.document.clone() for rows in itertools.islice(buffer, int(batches)))
    unshuffled = open_stream(cfg, model)
    as_read = measure_mixing(
        rows.document[:size] for rows in map(harvester.harvest, itertools.islice(unshuffled, int(batches)))
    )
    print(f"{batches} batches of {size} rows from a buffer of {buffer.capacity:,} rows")
    print(f"same-document pairs: {found.batches:.5f} in a batch, {found.perfect:.5f} perfectly shuffled")
    print(f"ratio {found.ratio:.2f}")
    print(f"without the buffer (rows as the forward passes give them): {as_read.batches:.5f}")


if __name__ == "__main__":
    main()
