"""How fast and how well mixed rows come from an activation store, against harvesting them, in one run.

    python scripts/bench/store.py [CONFIG] [--rows N] [--store FOLDER] [--dtype D] [--json] [key=value …]

Writes the job's store (or takes the one that is there) and takes batches in turn from three sources; medians of rounds:

    harvest   the job's shuffle buffer: forward passes, permutation, batches (what training without a store does)
    memory    the store, its files in the system's memory
    disk      the store, its files dropped from the system's memory before each round (fsync and POSIX_FADV_DONTNEED)

A round is one buffer of rows. Then, of a whole epoch of the store and of as many rows of the buffer: the share of pairs
of rows within a batch that come from one document, against a perfect shuffle of the same rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sae_tools.activations.mixing import Mixing, measure_mixing
from sae_tools.activations.store import Store
from sae_tools.activations.store_reader import StoreReader
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.memory import keep_freed_memory
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.rows import Rows
from sae_tools.training.from_store import open_reader
from sae_tools.training.job import open_buffer, open_stream
from sae_tools.training.sites import all_sites, resolve_sites
from sae_tools.training.storing import write_store


def take(source: Iterator[Rows], rows: int) -> float:
    """Rows per second over so many of them."""
    start, taken = time.perf_counter(), 0
    while taken < rows:
        taken += len(next(source))
    return taken / (time.perf_counter() - start)


def drop(store: Store) -> None:
    """Out of the system's memory, as far as it does what it is told."""
    for file in store.path.glob("rows-*"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def speeds(cfg: JobConfig, store: Store, model: LanguageModel, rounds: int) -> dict[str, list[float]]:
    sites = all_sites(resolve_sites(cfg, model).values())
    buffer = open_buffer(cfg, model, sites, open_stream(cfg, model))
    readers = {name: open_reader(cfg, store, sites, need_scale=False) for name in ("memory", "disk")}
    size = readers["memory"].window_rows
    found: dict[str, list[float]] = {"harvest": [], "memory": [], "disk": []}
    take(buffer, cfg.training.batch_size)
    take(readers["memory"], store.rows)  # into the system's memory
    for _ in range(rounds):
        found["harvest"].append(take(buffer, cfg.buffer.rows))
        drop(store)
        found["disk"].append(take(readers["disk"], size))
        take(StoreReader(store, rows=size, batch_size=size, seed=1), store.rows)
        found["memory"].append(take(readers["memory"], size))
    return found


def mixing(cfg: JobConfig, store: Store, model: LanguageModel) -> dict[str, Mixing]:
    sites = all_sites(resolve_sites(cfg, model).values())
    sources = {
        "buffer": open_buffer(cfg, model, sites, open_stream(cfg, model)),
        "store": open_reader(cfg, store, sites, need_scale=False),
    }
    batches = store.rows // cfg.training.batch_size
    return {
        name: measure_mixing(rows.document.clone() for rows in itertools.islice(source, batches))
        for name, source in sources.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--store", type=Path, help="kept, and used again if it is there")
    parser.add_argument("--dtype")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_config(JobConfig, Path(args.config), args.overrides)
    model = load_model(cfg.model.name, revision=cfg.model.revision, dtype=cfg.model.dtype)
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        path = args.store or Path(folder) / "store"
        start = time.perf_counter()
        store = write_store(cfg, path, rows=args.rows, dtype=args.dtype, model=model)
        assert store is not None
        written = store.rows / (time.perf_counter() - start)
        found = speeds(cfg, store, model, args.rounds)
        mixed = mixing(cfg, store, model)
        window = open_reader(cfg, store, all_sites(resolve_sites(cfg, model).values()), need_scale=False).window_rows
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(found[name], found["harvest"], strict=True))
        for name in ("memory", "disk")
    }
    if args.json:
        shares = {name: {"batches": m.batches, "perfect": m.perfect, "ratio": m.ratio} for name, m in mixed.items()}
        print(json.dumps({"rows_per_s": medians, "of_harvest": ratios, "written_per_s": written, "mixing": shares}))
        return
    print(f"{store.rows:,} rows of {store.plan.layout.row_bytes:,} bytes, {torch.get_num_threads()} threads")
    for name, rates in found.items():
        ratio = f"   {ratios[name]:.1f} times harvest" if name in ratios else ""
        print(f"{name:8} {medians[name]:10,.0f} rows/s  ({min(rates):,.0f} to {max(rates):,.0f}){ratio}")
    print(f"fills of {store.plan.fill_rows:,} rows; the reader's windows have {window:,}")
    for name, m in mixed.items():
        print(f"{name:8} same-document pairs: {m.batches:.5f} in a batch, {m.perfect:.5f} perfect; ratio {m.ratio:.2f}")


if __name__ == "__main__":
    main()
