"""Small stores of made-up rows, and what is compared between stores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.activations.store import Plan, Store, StoredSite
from sae_tools.activations.store_writer import fill_store
from sae_tools.config import RowsConfig
from sae_tools.rows import Rows
from sae_tools.runs.tensors import load_tensors
from tests.activations.fakes import FakeHarvester, FakeStream

MODEL = {"name": "made up", "kind": "folder", "revision": None, "weights_fingerprint": "a1"}
DATA = {"source": "made up", "context_length": 8, "shuffle_characters": 100}


def made_up_plan(rows: int = 100, fill: int = 40, shard: int = 20, **changes: Any) -> Plan:
    sites = [StoredSite(name=s.name, hook_name=s.hook_name, width=s.width) for s in FakeHarvester().sites]
    settings = {
        "model": MODEL,
        "data": DATA,
        "sites": sites,
        "scale": True,
        "dtype": "float32",
        "row_settings": RowsConfig(),
        "seed": 0,
        "contexts_per_forward": 3,
        "rows": rows,
        "fill_rows": fill,
        "shard_rows": shard,
    }
    return Plan.model_validate({**settings, **changes})


def made_up_buffer(plan: Plan, stream: FakeStream | None = None) -> ShuffleBuffer:
    harvester: Any = FakeHarvester()
    return ShuffleBuffer(
        stream or FakeStream(), harvester, rows=plan.fill_rows, batch_size=plan.shard_rows, seed=plan.seed
    )


def made_up_store(path: Path, plan: Plan | None = None, stream: FakeStream | None = None, **options: Any) -> Store:
    plan = plan or made_up_plan()
    store = fill_store(path, plan, made_up_buffer(plan, stream), {"python": "3"}, **options)
    assert store is not None
    return store


def stored_rows(store: Store) -> Rows:
    """All of them, in the order of the files, read by other means than the reader's."""
    parts = []
    for entry in store.manifest.shards:
        tensors, _ = load_tensors(store.path / entry.file)
        activations = {site.name: tensors[f"activations.{site.name}"].float() for site in store.plan.sites}
        context = (tensors[name].long() for name in ("tokens", "position", "document"))
        parts.append(Rows(activations, *context, tensors.get("scale")))
    return Rows.concatenate(parts)


def whole_rows(rows: Rows) -> Counter[tuple[Any, ...]]:
    """Every row with all that belongs to it, so that a row put together from two is found."""
    columns = [rows.tokens.tolist(), rows.position.tolist(), rows.document.tolist()]
    columns += [x.tolist() for x in rows.activations.values()] + ([] if rows.scale is None else [rows.scale.tolist()])
    return Counter(tuple(map(str, row)) for row in zip(*columns, strict=True))


def files_of(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name != ".lock"}
