"""The story of a job's training: rows come, every dictionary takes a step, and what happened is written down."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Protocol

from sae_tools.device import allow_tf32
from sae_tools.memory import phase
from sae_tools.rows import Rows
from sae_tools.training.checkpoint import save_checkpoint
from sae_tools.training.guard import Guard, NonFiniteError
from sae_tools.training.job import Job
from sae_tools.training.resampling import resample_dead_features
from sae_tools.training.schedule import evenly_spaced, learning_rate_factor
from sae_tools.training.through_model import RunContexts, first_kl_step
from sae_tools.training.trainee import Trainee


class Observer(Protocol):
    """Where progress goes: a bar, lines, wandb."""

    def update(self, tokens: int) -> None: ...

    def record(self, record: dict) -> None: ...


def train_job(job: Job, observer: Observer, should_stop=lambda: False) -> bool:
    """Train from `job.step` to the end; False if `should_stop()` ended it early (a checkpoint is then written).

    Raises NonFiniteError, with the last good state saved, when a loss or gradient is not finite.
    """
    cfg, steps = job.cfg, job.steps
    checkpoints = set(evenly_spaced(cfg.training.checkpoints, steps))
    windows = {step: i for i, step in enumerate(evenly_spaced(cfg.tracking.density_windows, steps))}
    guard = Guard(len(job.trainees), job.device)
    allow_tf32(job.device)
    clock = Clock()
    if job.step == 0 and not job.has_checkpoint:
        with phase():
            save_checkpoint(job)
    first = job.step
    while job.step < steps:
        guard.before(job.step, job.position())
        rows, contexts = next_rows(job)
        clock.lap("harvest")
        with phase() if job.step == first else nullcontext():  # the first one leaves Adam's moments behind
            take_step(job, rows, guard, contexts)
        clock.lap("train")

        resampling = [trainee for trainee in job.trainees if trainee.cfg.architecture.resamples_after(job.step)]
        logs = job.step % cfg.tracking.log_every == 0 or job.step == steps
        stops = should_stop() and job.step < steps
        if not (logs or resampling or stops or job.step in windows or job.step in checkpoints):
            observer.update(job.tokens)
            continue
        if (bad := guard.look()) is not None:
            raise stop_at_bad_step(job, *bad)
        for trainee in resampling:
            resample_dead_features(job, trainee)
        if job.step in windows:
            for trainee in job.trainees:
                trainee.density.close_window(job.run.density_file(trainee.name, windows[job.step]), job.tokens)
        if logs:
            record = log_record(job, clock)
            job.metrics.write(record)
            observer.record(record)
        observer.update(job.tokens)
        if job.step in checkpoints or stops:
            with phase():
                save_checkpoint(job)
            clock.lap("checkpoint")
        if stops:
            return False
    return True


def next_rows(job: Job) -> tuple[Rows, RunContexts | None]:
    """The rows of the step that follows, and the contexts that the first of them are of, where it has KL."""
    rows = next(job.buffer).to(job.device)
    if job.through_model is None or job.step < first_kl_step(job.cfg):
        return rows, None
    contexts = job.through_model.draw()
    return Rows.concatenate([contexts.rows, rows[: len(rows) - len(contexts.rows)]]), contexts


def take_step(job: Job, rows: Rows, guard: Guard, contexts: RunContexts | None = None) -> None:
    """One step of every dictionary of the job."""
    step_all(job.trainees, rows, job.step, job.steps, guard, contexts)
    job.step += 1


def step_all(
    trainees: list[Trainee], rows: Rows, step: int, steps: int, guard: Guard, contexts: RunContexts | None = None
) -> None:
    """The step that follows `step` of `steps`, of every one of them, or of none once something has not been finite. A
    function of its own, so that gradients are gone before the next ones come."""
    xs = [trainee.rows_in_space(rows) for trainee in trainees]
    targets = [trainee.targets(rows) for trainee in trainees]
    proposals = [t.propose(x, step, contexts, y) for t, x, y in zip(trainees, xs, targets, strict=True)]
    guard.check(step, [x if y is None else x.sum() + y.sum() for x, y in zip(xs, targets, strict=True)], proposals)
    for trainee, proposal in zip(trainees, proposals, strict=True):
        trainee.apply(proposal, step, steps, len(rows), guard.frozen)


def log_record(job: Job, clock: Clock) -> dict:
    """One line of metrics.jsonl: means over the steps since the last line. Only `time` differs between equal runs."""
    data = {"epoch": job.stream.epoch, "same_document": job.buffer.same_document}
    record: dict = {"step": job.step, "tokens": job.tokens, "data": data, "dictionaries": {}}
    for trainee in job.trainees:
        window = min(job.tokens, trainee.cfg.architecture.dead_window(trainee.training.batch_size))
        factor = learning_rate_factor(job.step - 1, job.steps, job.cfg.training)
        record["dictionaries"][trainee.name] = {
            **trainee.averages(),
            "lr": trainee.base_lr * factor,
            "dead": int(trainee.density.dead(job.tokens, window).sum()),
            "dead_window_tokens": window,
        }
    record["time"] = clock.since_last_record()
    return record


def stop_at_bad_step(job: Job, step: int, position: dict, which: int, bad_rows: bool) -> NonFiniteError:
    """Save the state before the bad step (every parameter still is what it was then) and say what happened."""
    trainee = job.trainees[which]
    job.step = step
    newest = job.run.newest_checkpoint() if job.has_checkpoint else None
    if newest is None or newest["tokens"] != job.tokens:  # one that is there is not put at risk by writing it again
        save_checkpoint(job, position=position)
    what = "the activations" if bad_rows else "the loss or its gradient"
    return NonFiniteError(
        f"{what} became non-finite at step {step + 1} in dictionary '{trainee.name}' (site {trainee.site.name}); "
        f"the state before that step is saved in {job.run.checkpoint(trainee.name, job.tokens)}."
    )


class Clock:
    """Seconds by activity, and rows per second since the last record."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, activity: str) -> None:
        now = time.perf_counter()
        self._seconds[activity] = self._seconds.get(activity, 0.0) + now - self._last
        self._last = now

    def since_last_record(self) -> dict[str, float]:
        self.lap("record")
        seconds, self._seconds = self._seconds, {}
        return {"seconds": round(sum(seconds.values()), 4)} | {name: round(s, 4) for name, s in seconds.items()}
