"""A job from its configuration to its figures: what `sae-train` does, callable from a notebook."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from sae_tools.activations.store_reader import StoreReader
from sae_tools.analysis.corpus import read_corpus
from sae_tools.analysis.fidelity import contexts_per_batch, measure_fidelity
from sae_tools.analysis.subject import Subject
from sae_tools.analysis.table import LEGEND, fidelity_tables
from sae_tools.config import JobConfig
from sae_tools.memory import phase
from sae_tools.models.load import LanguageModel
from sae_tools.rows import Contexts
from sae_tools.runs import atomic
from sae_tools.runs.directory import RunDirectory
from sae_tools.tracking.metrics import finite_or_null, read_metrics
from sae_tools.training.job import Job
from sae_tools.training.loop import train_job
from sae_tools.training.observer import open_observer
from sae_tools.training.start import resume_job, start_job


class Result(NamedTuple):
    """What came of a job."""

    run: RunDirectory
    fidelity: dict[str, dict[str, Any]] | None
    """The held-out figures by dictionary (analysis/fidelity.py); None if the job was stopped before it had them."""


class Stopped(Exception):
    """The job was asked to stop while its figures were being measured."""


def run_job(
    cfg: JobConfig,
    *,
    resume: Path | None = None,
    model: LanguageModel | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> Result:
    """Train the job's dictionaries, measure them on held-out text, and print and return what came out.

    resume: a run to continue; `cfg` must be its configuration. model: one in memory, instead of loading `cfg.model`.
    should_stop: asked after every step; when it says yes, a checkpoint is written and training ends early.
    Raises UserError for what the user can mend, NonFiniteError (one too) when the numbers blow up.
    """
    console = console or Console(stderr=True, soft_wrap=True)
    with phase():
        job = start_job(cfg, model) if resume is None else resume_job(resume, cfg, model)
    try:
        describe(job, console, resumed=resume is not None)
        with open_observer(job, console) as observer:
            finished = train_job(job, observer, should_stop)
        job.buffer.release()
        with phase():
            fidelity = evaluate(job, console, should_stop) if finished else None
        if fidelity is None:
            what = "Trained, but not measured yet" if finished else f"Stopped after {job.tokens:,} tokens"
            console.print(f"{what}. To go on: sae-train --resume {job.run.path}")
        else:
            report(job.run, fidelity, cfg, Console(soft_wrap=True))
        return Result(job.run, fidelity)
    finally:
        job.close()


def describe(job: Job, console: Console, resumed: bool) -> None:
    """What is about to happen, in a few lines."""
    buffer = job.buffer.describe()
    verb = f"Resuming at {job.tokens:,} tokens" if resumed else "Training"
    if job.step == job.steps:
        verb = "Trained already, to be measured again"
    console.print(f"{verb}: {len(job.trainees)} dictionaries on {job.model.title} → {job.run.path}")
    for trainee in job.trainees:
        d = trainee.dictionary
        places = [f"{s.kind} ({s.dim} dimensions) at {s.site.name}" for s in (trainee.space, trainee.written)]
        where = f"in {places[0]}" if trainee.target_space is None else f"from {' to '.join(places)}"
        console.print(f"  {trainee.name}: {d.d_sae:,} features {where}")
    if isinstance(job.buffer, StoreReader):
        store = job.buffer.store
        console.print(f"  rows: {store.rows:,} from {store.path} ({store.plan.dtype}, {store.bytes / 2**20:,.0f} MiB)")
    console.print(f"  buffer: {buffer['rows']:,} rows, {buffer['bytes'] / 2**20:,.0f} MiB")


def heldout_batches(job: Job) -> Callable[[], Iterator[Contexts]]:
    """Starts the held-out text that the figures stand on from its beginning, in batches that the logits leave memory
    for."""
    cfg = job.cfg
    corpus = read_corpus(job.model, cfg.data, cfg.rows, cfg.fidelity.tokens)
    return lambda: corpus.batches(contexts_per_batch(job.model, corpus.length, cfg.fidelity.tokens))


def evaluate(job: Job, console: Console, should_stop: Callable[[], bool]) -> dict[str, dict[str, Any]] | None:
    """Held-out figures of every dictionary, written to analysis/fidelity.json; None if asked to stop before the end."""
    subjects = [Subject(t.name, t.site, t.space, t.dictionary, t.target_space) for t in job.trainees]

    def progress(tokens: int) -> None:
        if should_stop():
            raise Stopped

    console.print(f"Measuring on {job.cfg.fidelity.tokens:,} held-out tokens")
    with console.status("Measuring"):
        try:
            fidelity = measure_fidelity(
                job.model, subjects, heldout_batches(job), job.cfg.rows, job.cfg.fidelity, progress
            )
        except Stopped:
            return None
    records = read_metrics(job.run.metrics)
    for entry in fidelity.values():
        entry["training_tokens"] = job.tokens
        entry["text_passes"] = records[-1]["data"]["epoch"] + 1
        entry["tokens_per_s"] = tokens_per_second(records)
    for trainee in job.trainees:
        if trainee.search is not None:
            key = f"{trainee.name}'s {trainee.cfg.architecture.coefficient_key}"
            fidelity[trainee.name]["match_l0"] = trainee.search.verdict(fidelity[trainee.name]["l0"], key)
    job.run.analysis.mkdir(exist_ok=True)
    atomic.write_text(
        job.run.analysis / "fidelity.json", json.dumps(finite_or_null(fidelity), indent=1, allow_nan=False) + "\n"
    )
    return fidelity


def tokens_per_second(records: list[dict[str, Any]]) -> float:
    """Rows per second over the whole of training, harvest included, all dictionaries together."""
    seconds = sum(record["time"]["seconds"] for record in records)
    return records[-1]["tokens"] / seconds if seconds else 0.0


def report(run: RunDirectory, fidelity: dict, cfg: JobConfig, console: Console) -> None:
    """The table and where everything is."""
    for table in fidelity_tables(fidelity):
        console.print(table)
    console.print(LEGEND.format(ultra=cfg.fidelity.ultra_rare_below, dense=cfg.fidelity.dense_above))
    for entry in fidelity.values():
        if "match_l0" in entry:
            console.print(entry["match_l0"]["said"])
    console.print(f"Run: {run.path}")
    for name, entry in fidelity.items():
        console.print(f"  {name}: {run.checkpoint(name, entry['training_tokens'])}")
    console.print(f"  fidelity: {run.path / 'analysis' / 'fidelity.json'}")
