"""How far a long piece of work is: a bar on a terminal, a line now and then without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class TokenProgress:
    """Tokens done, tokens per second and time left. A context manager; `update` costs next to nothing.

    with TokenProgress(total=2_000_000) as progress:
        progress.update(tokens_so_far)
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """done: tokens of before, which a resumed run does not count into its speed."""
        self.total, self.done, self._first = total, done, done
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._start = self._last_line = clock()
        self._note = ""
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=2)
            self._task = self._bar.add_task("", total=total, completed=done, text=self.text())

    def __enter__(self) -> TokenProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self.done > self._first:
            self._console.print(self.text(), highlight=False, soft_wrap=True)

    def update(self, tokens: int) -> None:
        """tokens: done by now, those of before included."""
        self.done = tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=tokens, text=self.text())
        elif self._clock() - self._last_line >= LINE_EVERY and tokens < self.total:
            self._last_line = self._clock()
            self._console.print(self.text(), highlight=False, soft_wrap=True)

    def record(self, record: dict[str, Any]) -> None:
        """Show the newest figures of a line of metrics beside the speed."""
        if "dictionaries" in record:
            figures = {name: values.get("fvu") for name, values in record["dictionaries"].items()}
            shown = [f"{name} {value:.3f}" for name, value in figures.items() if value is not None]
            self._note = f"FVU {', '.join(shown)}" if shown else ""
        elif record.get("loss") is not None:
            self._note = f"loss {record['loss']:.3f}"

    def text(self) -> str:
        """E.g. `61 %  1,220,608 of 2,000,000 tokens  48,310 tokens/s  0:16 left  FVU acts 0.210`."""
        parts = [f"{100 * self.done / self.total:.0f} %  {self.done:,} of {self.total:,} tokens"]
        seconds = self._clock() - self._start
        if self.done > self._first and seconds > 0:
            speed = (self.done - self._first) / seconds
            parts.append(f"{speed:,.0f} tokens/s")
            left = max(self.total - self.done, 0) / speed
            parts.append(f"{duration(left)} left" if left else f"in {duration(seconds)}")
        return "  ".join([*parts, self._note] if self._note else parts)


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
