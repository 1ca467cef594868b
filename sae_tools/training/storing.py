"""Writing an activation store from a job's configuration: what `sae-store` does, callable from a notebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.activations.harvest import Harvester
from sae_tools.activations.store import Plan, Store, StoredSite
from sae_tools.activations.store_writer import check_space, fill_store, look, sizes
from sae_tools.config import JobConfig
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from sae_tools.models.load import DTYPES, LanguageModel
from sae_tools.tracking.progress import TokenProgress, duration
from sae_tools.training.estimate import time_harvest
from sae_tools.training.from_store import estimates_need_scale, what_is_read
from sae_tools.training.job import open_model, open_stream
from sae_tools.training.schedule import total_steps
from sae_tools.training.sites import all_sites
from sae_tools.training.start import versions


@dataclass(frozen=True)
class Storing:
    """A store that is about to be written: the plan, and what fills it."""

    cfg: JobConfig
    plan: Plan
    model: LanguageModel
    stream: ContextStream
    harvester: Harvester

    def buffer(self) -> ShuffleBuffer:
        """On the CPU, with all its memory; nothing is read yet."""
        plan = self.plan
        return ShuffleBuffer(
            self.stream,
            self.harvester,
            rows=plan.fill_rows,
            batch_size=plan.shard_rows,
            seed=plan.seed,
            device="cpu",
        )


def plan_store(
    cfg: JobConfig, rows: int | None = None, dtype: str | None = None, model: LanguageModel | None = None
) -> Storing:
    """What would be stored for this job: the sites of all its dictionaries, and the final norm's scale where a space is
    estimated with it. The job's `store` setting has no part in it.

    rows: None: as many as the job trains on. dtype: of the activations; None: the model's own.
    Raises UserError for everything about model, sites and text that `sae-train` would refuse.
    """
    if rows is not None and rows < 1:
        raise UserError(f"--tokens is {rows}, but a store has at least one row.")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype is '{dtype}', but must be one of {', '.join(DTYPES)}.")
    _, model, sites = open_model(cfg, model)
    stream = open_stream(cfg, model)
    harvester = Harvester(
        model, all_sites(sites.values()), cfg.rows, need_scale=estimates_need_scale(cfg.dictionaries.values())
    )
    rows = total_steps(cfg.training) * cfg.training.batch_size if rows is None else rows
    plan = Plan(
        model=model.describe(),
        data=what_is_read(cfg.data, stream.fingerprint()),
        sites=[StoredSite(name=site.name, hook_name=site.hook_name, width=site.width) for site in harvester.sites],
        scale=harvester.need_scale,
        dtype=dtype or str(model.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        row_settings=cfg.rows,
        seed=cfg.seed,
        contexts_per_forward=cfg.buffer.contexts_per_forward,
        rows=rows,
        fill_rows=1,
        shard_rows=1,
    )
    fill, shard = sizes(rows, cfg.buffer.rows, plan.layout.row_bytes)
    return Storing(cfg, plan.model_copy(update={"fill_rows": fill, "shard_rows": shard}), model, stream, harvester)


def write_store(
    cfg: JobConfig,
    path: Path,
    *,
    rows: int | None = None,
    dtype: str | None = None,
    model: LanguageModel | None = None,
    dry_run: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> Store | None:
    """Write the job's store to `path`, or go on with it, and say what was done. None if it was stopped before the end
    (or `dry_run`: nothing is written then).

    rows, dtype: as in `plan_store`. model: one in memory, instead of loading `cfg.model`.
    Raises UserError for what the user can mend; a folder that is something else, or another store, is left alone.
    """
    console = console or Console(stderr=True, soft_wrap=True, highlight=False)
    storing = plan_store(cfg, rows, dtype, model)
    plan = storing.plan
    written = look(path, plan)
    if written.complete:
        store = Store.open(path)
        console.print(f"{path} is complete: {store.rows:,} rows, {_size(store.bytes)}")
        return store
    missing = plan.bytes - sum(header.bytes for header in written.headers)
    console.print(f"Store: {plan.rows:,} rows of {storing.model.title} → {path}")
    held = [f"{site.name} ({site.width})" for site in plan.sites] + ["the final norm's scale"] * plan.scale
    console.print(f"  {', '.join(held)} in {plan.dtype}, {plan.layout.row_bytes:,} bytes a row")
    console.print(f"  {_size(plan.bytes)} in {plan.shards:,} files, shuffled {plan.fill_rows:,} rows at a time")
    if written.headers:
        console.print(f"  {written.rows:,} rows are there already; {_size(missing)} to be written")
    check_space(path, missing)
    if dry_run:
        seconds = (plan.rows - written.rows) * time_harvest(cfg, storing.model, storing.harvester)
        console.print(f"  about {duration(seconds)} on this machine, without the disk's time")
        return None
    with TokenProgress(plan.rows, written.rows, console) as progress:
        store = fill_store(path, plan, storing.buffer(), versions(), progress=progress.update, should_stop=should_stop)
    if store is None:
        console.print(f"Stopped after {look(path, plan).rows:,} rows. To go on, run the same command again.")
    else:
        n = store.manifest.text_passes
        console.print(f"Store: {path}, {_size(store.bytes)}, {n} {'pass' if n == 1 else 'passes'} over the text")
    return store


def _size(n: int) -> str:
    return f"{n:,} bytes ({n / 2**20:,.1f} MiB)" if n < 2**30 else f"{n:,} bytes ({n / 2**30:,.2f} GiB)"
