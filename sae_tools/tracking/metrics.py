"""metrics.jsonl: one JSON object per logged step, in order, each with its `step`.

What differs between two equal runs, seconds above all, stands under the key `time` and nowhere else.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from sae_tools.errors import UserError
from sae_tools.runs import atomic


class MetricsWriter:
    """Appends lines to metrics.jsonl."""

    def __init__(self, path: Path, resume_at: int | None = None):
        """resume_at: keep the lines up to this step; None: all. A last line that was torn is dropped in any case.

        Raises UserError where the file cannot be written, or holds something else.
        """
        self.path = path
        if path.exists():
            lines = _whole_lines(path)
            kept = [line for line in lines if resume_at is None or json.loads(line)["step"] <= resume_at]
            atomic.write_bytes(path, b"".join(line + b"\n" for line in kept))
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}).") from None

    def write(self, record: dict[str, Any]) -> None:
        """Append one line. Numbers that are not finite become null, which is what JSON has for them."""
        line = json.dumps(finite_or_null(record), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with atomic.space_on_device_for(self.path):
            while line:
                line = line[self._file.write(line) :]

    def flush(self) -> None:
        """Force all lines to disk; done before a checkpoint that relies on them."""
        with atomic.space_on_device_for(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines. Raises UserError for a file that is missing or has a line in it that is no record."""
    return [json.loads(line) for line in _whole_lines(path)]


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without what may differ between equal runs."""
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that end in a newline and are records; the last may be torn, any other that is not is an error."""
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    for number, line in enumerate(lines, 1):
        try:
            whole = isinstance(json.loads(line)["step"], int)
        except (ValueError, RecursionError, TypeError, KeyError):
            whole = False
        if not whole:
            raise UserError(f"{path}, line {number}: no record of metrics.")
    return lines


def finite_or_null(value: Any) -> Any:
    """The value with null for every number in it that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite_or_null(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
