"""The loop of `sae-lm train`: a language model from scratch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers.utils import logging as transformers_logging

from sae_tools.config import LMConfig
from sae_tools.errors import UserError
from sae_tools.lm.loss import mean_loss, next_token_loss
from sae_tools.lm.run import LMRun, resume_run, start_run
from sae_tools.lm.schedule import is_checkpoint_step, learning_rate_factor
from sae_tools.tracking.metrics import MetricsWriter
from sae_tools.tracking.progress import TokenProgress


def train_lm(
    cfg: LMConfig,
    *,
    resume: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    console: Console | None = None,
) -> LMRun:
    """Trains the model that `cfg` describes, or continues the run in `resume`, and returns the run.

    should_stop: asked after every step; when it says yes, the state is saved and the run ends, not yet `finished`.
    Resuming continues bit for bit on a CPU with as many threads. Raises UserError for what is wrong with the
    configuration, the data or the folder, and where the loss is no longer finite.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it takes the BOS in a context for padding, and warns
    if cfg.training.threads:
        torch.set_num_threads(cfg.training.threads)
    run = start_run(cfg) if resume is None else resume_run(resume, cfg)
    training = run.cfg.training
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    verb = "Training" if resume is None else f"Resuming at {run.tokens:,} tokens"
    console.print(f"{verb}: {run.cfg.architecture.kind}, {parameters / 1e6:.2f} M parameters → {run.folder}")
    metrics = MetricsWriter(run.directory.metrics, resume_at=run.step)
    with TokenProgress(run.steps * run.tokens_per_step, run.tokens, console) as progress:
        since_log = Lap()
        while not run.finished:
            if is_checkpoint_step(run.step, run.steps, training.checkpoint_first_step):
                run.checkpoint()
            since_log.add(*train_step(run))
            progress.update(run.tokens)
            stop = should_stop()
            saves = stop or run.finished or run.step % training.save_every == 0
            if saves or run.step % training.log_every == 0:
                since_log.check_finite(run)  # before anything is saved
            if run.finished or run.step % training.log_every == 0:
                record = log_record(run, since_log)
                metrics.write(record)
                progress.record(record)
                since_log = Lap()
            if saves:
                metrics.flush()
                run.save()
            if stop and not run.finished:
                return run
    run.checkpoint()
    return run


def train_step(run: LMRun) -> tuple[Tensor, Tensor]:
    """One step; returns the loss before it and the gradient's norm before clipping, on the device."""
    cfg = run.cfg.training
    tokens = next(run.stream).tokens.to(run.device)
    factor = learning_rate_factor(run.step, run.steps, cfg)
    for group in run.optimiser.param_groups:
        group["lr"] = cfg.lr * factor * group.get("lr_scale", 1.0)
    loss = next_token_loss(run.model, tokens, cfg.autocast)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), cfg.clip_norm)
    run.optimiser.step()
    run.optimiser.zero_grad()
    run.step += 1
    return loss.detach(), norm


class Lap:
    """Losses and gradient norms of some steps, left on the device until they are asked for."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.start = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def check_finite(self, run: LMRun) -> None:
        """Raises UserError where a step's loss or gradient was not finite; nothing of it has been saved then."""
        bad = ~torch.stack([torch.stack(self.losses), torch.stack(self.norms)]).isfinite().all(0)
        if bad.any():
            step = run.step - len(self.losses) + int(bad.int().argmax()) + 1
            raise UserError(
                f"The loss or its gradient is not finite at step {step}; what was last saved in {run.folder} is from "
                "before it (a lower training.lr may help)."
            )


def log_record(run: LMRun, lap: Lap) -> dict[str, Any]:
    """A line of metrics.jsonl: means over the lap; the held-out loss where it is due and at the end."""
    training = run.cfg.training
    steps = len(lap.losses)
    record: dict[str, Any] = {
        "step": run.step,
        "tokens": run.tokens,
        "epoch": run.stream.epoch,
        "loss": torch.stack(lap.losses).mean().item(),
        "grad_norm": torch.stack(lap.norms).mean().item(),
        "lr": run.optimiser.param_groups[0]["lr"],
        "time": {"tokens_per_s": steps * run.tokens_per_step / (time.perf_counter() - lap.start)},
    }
    due = run.step // training.heldout_every > (run.step - steps) // training.heldout_every
    if due or run.finished:
        record["heldout_loss"] = mean_loss(
            run.model, run.heldout, batch=training.batch_size, autocast=training.autocast
        )
    return record
