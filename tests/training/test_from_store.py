"""Jobs that read an activation store: the same as training on the same rows live, resumable, without a forward pass."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sae_tools.activations import store_reader
from sae_tools.activations.harvest import Harvester
from sae_tools.activations.store import Store
from sae_tools.activations.store_reader import StoreReader
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.errors import UserError
from sae_tools.runs.density import merge_windows, read_windows
from sae_tools.training import job as job_room
from sae_tools.training.from_store import stored_sample
from sae_tools.training.run import run_job
from sae_tools.training.storing import plan_store, write_store
from tests.activations.stores import files_of
from tests.jobs import write_job
from tests.training.resuming import contents, killed, resume

QUIET = {"console": Console(file=io.StringIO())}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def store(job: Path) -> Path:
    """3,072 rows in 5 fills of at most 700, as many as the job trains on."""
    path = job.parent / "store"
    write_store(load_config(JobConfig, job), path, **QUIET)
    return path


@pytest.fixture(scope="module")
def from_store(job: Path, store: Path) -> dict[str, object]:
    return contents(run_job(load_config(JobConfig, job, [f"store={store}", "name=whole"]), **QUIET).run.path)


def config(job: Path, *overrides: str) -> JobConfig:
    return load_config(JobConfig, job, overrides)


def weights_of(found: dict[str, object], tokens: int = 3072) -> dict[str, object]:
    return {key: value for key, value in found.items() if f"checkpoints/{tokens}/" in key}


def test_what_a_jobs_store_holds(job: Path, store: Path):
    opened = Store.open(store)
    opened.verify()
    plan = opened.plan
    assert [site.name for site in plan.sites] == ["mlp_acts@1", "mlp_out@1", "mlp_out@2"]
    assert (opened.rows, plan.scale, plan.dtype) == (24 * 128, True, "float32")
    assert plan.fill_rows <= 700 and opened.manifest.versions["torch"] == str(torch.__version__)
    assert plan_store(config(job)).plan.difference(plan) is None
    only_acts = config(job, "dictionaries={a: {site: mlp_acts@1, space: {kind: mlp_acts}}}", "model.dtype=bfloat16")
    narrow = plan_store(only_acts, rows=100).plan
    assert (narrow.scale, narrow.dtype, narrow.rows, len(narrow.sites)) == (False, "bfloat16", 100, 1)
    assert plan_store(only_acts, dtype="float16").plan.dtype == "float16"


def test_the_same_rows_in_the_same_order_give_the_same_weights(tmp_path: Path, monkeypatch):
    """One fill, read in the order in which it was written, is what a live job's buffer serves."""
    file = write_job(tmp_path, buffer__rows=1280, training__tokens=1280, training__estimate_rows=300)
    relu = "dictionaries.relu.architecture={kind: relu, l1: 0.3}"  # resampling reads in an order of its own
    cfg = config(file, relu, f"store={tmp_path / 'store'}")
    store = write_store(cfg, tmp_path / "store", **QUIET)
    assert store is not None and store.plan.fill_rows == 1280

    sample = stored_sample(cfg, store, plan_store(cfg).harvester.sites)
    monkeypatch.setattr(job_room, "estimation_rows", lambda *_: sample)
    live = run_job(config(file, relu, "name=live"), **QUIET).run.path

    monkeypatch.setattr(store_reader.torch, "randperm", lambda n, generator: torch.arange(n))
    read = run_job(cfg.model_copy(update={"name": "read"}), **QUIET).run.path
    monkeypatch.undo()
    a, b = contents(live), contents(read)
    assert a.keys() == b.keys() and len(weights_of(a, 1280)) > 40
    assert [key for key in a if a[key] != b[key]] == []


def test_no_forward_pass_runs_in_training(job: Path, store: Path, from_store, monkeypatch):
    """The language model is read for the spaces' maps and run for the held-out figures only."""

    def harvest(*_: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(Harvester, "harvest", harvest)
    monkeypatch.setattr("sae_tools.training.run.evaluate", lambda *_: {})
    monkeypatch.setattr("sae_tools.training.run.report", lambda *_: None)
    run = run_job(config(job, f"store={store}", "name=quiet"), **QUIET).run
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    same = [{key: value for key, value in line.items() if key != "time"} for line in lines]
    assert same == from_store["metrics"]


def test_figures_and_history_are_complete(from_store):
    fidelity: Any = from_store["fidelity"]
    assert set(fidelity) == {"acts", "update", "logits", "relu"}
    assert all(entry["text_passes"] == 1 for entry in fidelity.values())
    metrics: Any = from_store["metrics"]
    first, last = (metrics[i]["dictionaries"]["update"]["squared_error"] for i in (0, -1))
    assert last < first and 0 < metrics[0]["data"]["same_document"] < 1


@pytest.mark.parametrize(("where", "n"), [("step", 3), ("step", 50), ("step", 93), ("write", 3), ("write", 17)])
def test_a_killed_job_ends_as_if_it_had_not_been(job: Path, store: Path, from_store, where: str, n: int):
    name = f"{where}-{n}"
    killed(where, n, job, f"name={name}", f"store={store}")
    after = resume(job.parent / "runs" / name)
    assert after.keys() == from_store.keys()
    assert [key for key in from_store if after[key] != from_store[key]] == []


@pytest.mark.parametrize(("where", "n"), [("harvest", 4), ("harvest", 17), ("harvest", 24), ("write", 1), ("write", 6)])
def test_a_killed_writer_ends_as_if_it_had_not_been(job: Path, store: Path, where: str, n: int):
    """5 shards, each of some 6 forward passes; then the manifest."""
    path = job.parent / f"{where}-{n}"
    killed(where, n, "sae-store", job, "--output", path)
    assert not (path / "manifest.json").exists()
    write_store(config(job), path, **QUIET)
    assert files_of(path) == files_of(store)


def test_a_sweep_over_one_store(job: Path, store: Path, from_store):
    """Two other jobs on the same rows: other sizes and seeds, and fewer sites."""
    settings = ["dictionaries.acts.d_sae=96", "dictionaries.acts.architecture.k=8", "training.batch_size=64"]
    wide = config(job, f"store={store}", "name=wide", "training.tokens=1024", *settings)
    few = {"update": config(job).dictionaries["update"]}
    one = config(job, f"store={store}", "name=one").model_copy(update={"dictionaries": few})
    other = config(job, f"store={store}", "name=other", "seed=1")
    found = [contents(run_job(cfg, **QUIET).run.path) for cfg in (wide, one, other)]
    assert {key.split("/")[0] for key in found[1] if "checkpoints" in key} == {"update"}
    # What other dictionaries a job has makes no difference to one of them.
    update = {key: value for key, value in weights_of(from_store).items() if key.startswith("update/")}
    assert update and weights_of(found[1]) == update
    assert any(key.startswith("acts/") for key in weights_of(found[0], 1024))
    assert (
        weights_of(found[2])["update/checkpoints/3072/sae_weights.safetensors:W_enc"]
        != update["update/checkpoints/3072/sae_weights.safetensors:W_enc"]
    )


def test_more_tokens_than_the_store_has_are_another_epoch(job: Path, store: Path):
    cfg = config(job, f"store={store}", "name=long", "training.tokens=5000", "fidelity.tokens=100")
    found = contents(run_job(cfg, **QUIET).run.path)
    metrics: Any = found["metrics"]
    assert [line["data"]["epoch"] for line in metrics] == [int(line["step"] > 24) for line in metrics]
    fidelity: Any = found["fidelity"]
    assert fidelity["acts"]["text_passes"] == 2


def test_resampling_takes_its_rows_from_the_store(job: Path, store: Path, monkeypatch):
    asked = []
    real = StoreReader.__init__

    def watched(self, store, sites=None, **settings):
        asked.append((sites, settings["seed"]))
        real(self, store, sites, **settings)

    monkeypatch.setattr(StoreReader, "__init__", watched)
    relu = "dictionaries.relu.architecture"
    overrides = [f"{relu}.l1=100", f"{relu}.resample_dead_steps=1", "training.lr=0.03", "training.tokens=1500"]
    run = run_job(config(job, f"store={store}", "name=resampled", "fidelity.tokens=100", *overrides), **QUIET).run
    assert [sites for sites, _ in asked].count(["mlp_out@1"]) == 2  # a pass for the losses, one for the rows drawn
    assert len({seed for sites, seed in asked if sites == ["mlp_out@1"]}) == 1
    assert [event.kind for event in merge_windows(read_windows(run.density("relu"))).events] == ["resampled"]


def test_a_run_is_resumed_on_its_store_in_another_place(job: Path, store: Path, from_store, tmp_path: Path):
    killed("step", 17, job, "name=away", f"store={store}")
    run, moved = job.parent / "runs" / "away", tmp_path / "moved"
    own = run / "config.yaml"
    with pytest.raises(UserError, match="another configuration: store is None, but the run has"):
        run_job(load_config(JobConfig, own, ["store=null"]), resume=run, **QUIET)
    write_store(config(job, "seed=5"), tmp_path / "other", rows=1000, **QUIET)
    with pytest.raises(UserError, match="its activation store is not the one .* fingerprint, rows"):
        run_job(load_config(JobConfig, own, [f"store={tmp_path / 'other'}"]), resume=run, **QUIET)
    store.rename(moved)
    try:
        run_job(load_config(JobConfig, own, [f"store={moved}"]), resume=run, **QUIET)
    finally:
        moved.rename(store)
    after = contents(run)
    assert [key for key in from_store if after[key] != from_store[key]] == []


def test_a_live_run_takes_no_store_when_it_is_resumed(job: Path, store: Path):
    run = run_job(config(job, "name=live", "training.tokens=256", "fidelity.tokens=100"), **QUIET).run.path
    with pytest.raises(UserError, match="another configuration: store is .*, but the run has None"):
        run_job(load_config(JobConfig, run / "config.yaml", [f"store={store}"]), resume=run, **QUIET)


def test_a_run_is_not_resumed_on_another_store(job: Path, store: Path, tmp_path: Path):
    run = run_job(config(job, f"store={store}", "name=exchanged", "training.tokens=256"), **QUIET).run.path
    moved = store.rename(tmp_path / "aside")
    try:
        with pytest.raises(UserError, match="there is no such activation store"):
            resume(run)
        write_store(config(job, "seed=5"), store, rows=1000, **QUIET)
        with pytest.raises(UserError, match="its activation store is not the one .* fingerprint, rows"):
            resume(run)
    finally:
        if store.exists():
            store.rename(tmp_path / "other")
        moved.rename(store)
    resume(run)
