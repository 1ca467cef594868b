"""Jobs whose last steps have KL through the model: metrics, resuming bit for bit, bad numbers, stores, estimates."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sae_tools.allocations import peak_of
from sae_tools.config import JobConfig
from sae_tools.errors import UserError
from sae_tools.rows import Rows
from sae_tools.training import loop
from sae_tools.training.estimate import Estimate, estimate_job
from sae_tools.training.estimate_kl import kl_cost
from sae_tools.training.guard import Guard, NonFiniteError
from sae_tools.training.job import Job, open_harvester
from sae_tools.training.run import run_job
from sae_tools.training.sites import resolve_sites
from sae_tools.training.start import start_job
from sae_tools.training.storing import write_store
from sae_tools.training.through_model import RunContexts, Splice, contexts_per_step, first_kl_step
from tests.jobs import job_config
from tests.training.resuming import contents

KL = {"fraction": 0.4, "contexts": 3}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    """24 steps, the last 10 with KL, of which three contexts' rows (up to 93) are in a batch of 128."""
    return job_config(tmp_path_factory.mktemp("job"), training__kl=KL, tracking__log_every=4)


def renamed(cfg: JobConfig, name: str, **changes) -> JobConfig:
    return cfg.model_copy(update={"name": name, **changes})


@pytest.fixture(scope="module")
def whole(job: JobConfig) -> Path:
    return run_job(renamed(job, "whole"), console=QUIET).run.path


def different(mine: dict[str, object], theirs: dict[str, object]) -> list[str]:
    """What is not the same; a checkpoint more makes the trainer's state of an older one go."""
    older = [key for key in theirs if key not in mine]
    assert all("trainer.safetensors" in key and "/3072/" not in key for key in older)
    return [key for key in theirs if key in mine and key != "files" and mine[key] != theirs[key]]


def stop_after(steps: int):
    calls = 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        return calls >= steps

    return should_stop


def test_the_metrics_tell_it_for_the_steps_that_have_it(job: JobConfig, whole: Path):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert first_kl_step(job) == 14
    for line in lines:
        for entry in line["dictionaries"].values():
            assert ("kl" in entry) == (line["step"] > 14), line["step"]
            assert entry.get("kl", 1.0) > 0
            assert "kl_steps" not in entry


@pytest.mark.parametrize("step", [9, 17])  # before it begins and after
def test_a_run_that_was_stopped_ends_as_one_that_was_not(job: JobConfig, whole: Path, step: int):
    cfg = renamed(job, f"stopped-{step}")
    stopped = run_job(cfg, should_stop=stop_after(step), console=QUIET)
    assert stopped.fidelity is None
    resumed = run_job(cfg, resume=stopped.run.path, console=QUIET)
    mine, theirs = contents(resumed.run.path), contents(whole)
    assert different(mine, theirs) == []


def test_a_splice_that_blows_up_stops_the_run_before_that_step(job: JobConfig, whole: Path, monkeypatch):
    cfg, calls = renamed(job, "bad"), 0
    gradient = Splice.gradient

    def blown_up(splice: Splice, z_hat):
        nonlocal calls
        calls += 1  # four dictionaries a step
        return gradient(splice, z_hat) * (float("nan") if calls == 4 * 3 + 2 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(Splice, "gradient", blown_up)
        with pytest.raises(NonFiniteError, match="loss or its gradient became non-finite at step 18 in .*'update'"):
            run_job(cfg, console=QUIET)
    run = Path(cfg.runs_dir) / "bad"
    assert (run / "acts" / "checkpoints" / str(17 * 128)).is_dir()
    mine, theirs = contents(run_job(cfg, resume=run, console=QUIET).run.path), contents(whole)
    assert different(mine, theirs) == []


def test_rows_of_contexts_come_first_and_a_step_has_as_many_rows_as_ever(job: JobConfig):
    opened = start_job(renamed(job, "rows"))
    assert opened.through_model is not None
    rows, contexts = loop.next_rows(opened)
    assert contexts is None and len(rows) == 128
    opened.step = 14
    rows, contexts = loop.next_rows(opened)
    assert contexts is not None and len(rows) == 128 and 60 < len(contexts.rows) <= 93
    assert torch.equal(rows.tokens[: len(contexts.rows)], contexts.rows.tokens)
    assert set(rows.activations) == {"mlp_acts@1", "mlp_out@1", "mlp_out@2"}
    tokens = torch.cat([part.tokens for part in contexts.parts])
    again = start_job(renamed(job, "rows-again")).through_model
    assert again is not None and torch.equal(torch.cat([part.tokens for part in again.draw().parts]), tokens)
    opened.close()


def test_dictionaries_are_spliced_alone(job: JobConfig, whole: Path):
    """What one of them becomes does not depend on the others."""
    alone = renamed(job, "alone", dictionaries={"update": job.dictionaries["update"]})
    run = run_job(alone, console=QUIET).run.path
    mine, theirs = contents(run), contents(whole)
    weights = [key for key in mine if key.startswith("update/") and "sae_weights" in key]
    assert len(weights) == 16 and [key for key in weights if mine[key] != theirs[key]] == []


def test_a_job_on_a_store_runs_the_model_for_it(job: JobConfig, tmp_path: Path):
    cfg = renamed(job, "stored", dictionaries={"logits": job.dictionaries["logits"]})
    assert write_store(cfg, tmp_path / "store", console=QUIET) is not None
    cfg = renamed(cfg, "stored", store=str(tmp_path / "store"))
    whole = run_job(cfg, console=QUIET).run.path
    line = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["dictionaries"]["logits"]["kl"] > 0
    cfg = renamed(cfg, "stored-stopped")
    stopped = run_job(cfg, should_stop=stop_after(17), console=QUIET).run.path
    mine, theirs = contents(run_job(cfg, resume=stopped, console=QUIET).run.path), contents(whole)
    assert different(mine, theirs) == []


def test_more_rows_than_a_step_has_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="training.kl.contexts is 5, which are up to 155 rows, more than the 128"):
        job_config(tmp_path, training__kl={"contexts": 5})


def test_empty_settings_mean_the_defaults_and_null_means_off(tmp_path: Path):
    assert job_config(tmp_path).training.kl is None
    cfg = job_config(tmp_path, training__kl={})
    kl = cfg.training.kl
    assert kl is not None and (kl.fraction, kl.coefficient, kl.contexts) == (0.1, 1.0, None)
    assert contexts_per_step(cfg) == 4  # of 31 rows, in a batch of 128


def test_the_estimate_has_its_time_and_memory(job: JobConfig):
    with_kl = estimate_job(job)
    off = job.model_copy(update={"training": job.training.model_copy(update={"kl": None})})
    without = estimate_job(off)
    assert without.kl is None and with_kl.kl is not None and with_kl.kl.steps == 10
    per_token = with_kl.harvest_seconds_per_token + sum(d.seconds_per_token for d in with_kl.dictionaries.values())
    assert with_kl.seconds == pytest.approx(with_kl.tokens * per_token + 10 * with_kl.kl.seconds)
    assert with_kl.kl.seconds > 0 and "KL (last 10 steps)" in rendered(with_kl)
    assert with_kl.phases["training"] >= without.phases["training"]


def test_the_estimated_memory_is_what_such_a_step_takes_more(job: JobConfig):
    opened = start_job(renamed(job, "memory"))
    cost = kl_cost(
        job,
        opened.model,
        resolve_sites(job, opened.model),
        open_harvester(job, opened.model, opened.trainees[0].sites),
    )
    assert cost is not None
    guard = Guard(len(opened.trainees), opened.device)
    for step in (0, 14):  # what is made once is no part of it
        opened.step = step
        loop.take_step(opened, *with_guard(opened, guard))
    opened.step = 0
    plain = peak_of(lambda: loop.take_step(opened, *with_guard(opened, guard)))
    opened.step = 14
    more = peak_of(lambda: loop.take_step(opened, *with_guard(opened, guard))) - plain
    opened.close()
    assert 0.5 * more < cost.memory.step < 2 * more, (cost.memory.step, more)


def with_guard(opened: Job, guard: Guard) -> tuple[Rows, Guard, RunContexts | None]:
    rows, contexts = loop.next_rows(opened)
    return rows, guard, contexts


def rendered(estimate: Estimate) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(estimate.render())
    return console.file.getvalue()  # type: ignore[attr-defined]
