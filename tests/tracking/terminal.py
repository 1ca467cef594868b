"""A clock that stands still, and a console that is read back."""

from __future__ import annotations

import io

from rich.console import Console


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120), out
