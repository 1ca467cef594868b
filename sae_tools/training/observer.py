"""Where a job's progress goes while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from sae_tools.training.job import Job


class Observer:
    def update(self, tokens: int) -> None: ...

    def record(self, record: dict) -> None: ...


@contextmanager
def open_observer(job: Job, console: Console) -> Iterator[Observer]:
    yield Observer()
