"""Commands run in the test's own process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

Command = Callable[..., tuple[int, str, str]]


def in_process(name: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capfd) -> Command:
    """Runs the command `name` with the arguments given; returns (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capfd.readouterr()
        return exit.value.code or 0, captured.out, captured.err  # type: ignore[return-value]

    return run


def sentence(result: tuple[int, str, str], name: str = "sae-train") -> str:
    """The one sentence of a mistake of the command `name`: exit status 2, the last line on stderr, no traceback."""
    status, _, err = result
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith(f"{name}: ")]
    assert len(lines) == 1 and lines[0] == err.splitlines()[-1] and "Traceback" not in err, err
    return lines[0].removeprefix(f"{name}: ")
