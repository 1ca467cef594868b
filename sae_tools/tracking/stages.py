"""How far work in several stages is: a bar on a terminal, lines without one."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sae_tools.tracking.progress import duration

LINE_EVERY = 10.0
"""Seconds between the lines of a stage where there is no terminal; each stage begins with one."""


class StageProgress:
    """A context manager; `update` costs next to nothing and announces a stage by its first call.

    with StageProgress() as progress:
        progress.update("reading text", tokens_so_far, tokens)
    """

    def __init__(
        self,
        units: dict[str, str] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """units: what is counted in a stage, e.g. `tokens`, shown with its speed; a stage not in it shows percent."""
        self._units = units or {}
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._stage: str | None = None
        self._done = self._total = self._first = 0
        self._start = self._last_line = clock()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task("", total=1, text="")

    def __enter__(self) -> StageProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """done: of the stage's `total`, by now."""
        now = self._clock()
        begins = stage != self._stage
        if begins:
            self._stage, self._start, self._first = stage, now, done
        self._done, self._total = done, total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=max(total, 1), text=self.text())
        elif begins or now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self._console.print(self.text(), highlight=False, soft_wrap=True)

    def text(self) -> str:
        """E.g. `reading text  61 %  79,953 of 131,072 tokens  21,310 tokens/s  0:02 left`."""
        parts = [str(self._stage), f"{100 * self._done / max(self._total, 1):.0f} %"]
        unit = self._units.get(str(self._stage))
        if unit:
            parts.append(f"{self._done:,} of {self._total:,} {unit}")
        seconds = self._clock() - self._start
        if self._done > self._first and seconds > 0:
            speed = (self._done - self._first) / seconds
            if unit:
                parts.append(f"{speed:,.0f} {unit}/s")
            parts.append(f"{duration(max(self._total - self._done, 0) / speed)} left")
        return "  ".join(parts)
