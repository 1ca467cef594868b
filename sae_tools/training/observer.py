"""Where a job's progress goes while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from sae_tools.tracking.progress import TokenProgress
from sae_tools.tracking.wandb import WandbTracker
from sae_tools.training.job import Job


class Observer:
    """Passes on to each of its parts."""

    def __init__(self, *parts: TokenProgress | WandbTracker):
        self.parts = parts

    def update(self, tokens: int) -> None:
        for part in self.parts:
            part.update(tokens)

    def record(self, record: dict) -> None:
        for part in self.parts:
            part.record(record)


@contextmanager
def open_observer(job: Job, console: Console) -> Iterator[Observer]:
    """Progress on `console`, and wandb if the job asks for it. Raises UserError where wandb does not start."""
    tracking = job.cfg.tracking
    with ExitStack() as stack:
        parts: list[TokenProgress | WandbTracker] = []
        if tracking.wandb != "off":
            config = job.cfg.model_dump(mode="json")
            parts.append(WandbTracker(tracking.wandb, tracking.wandb_project, job.run.path, config))
        parts.append(TokenProgress(job.steps * job.cfg.training.batch_size, job.tokens, console))
        yield Observer(*(stack.enter_context(part) for part in parts))
