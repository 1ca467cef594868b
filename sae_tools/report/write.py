"""Writing a report from its contents: one file, or a folder, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from sae_tools.errors import UserError
from sae_tools.report.blobs import Blob, count, encoded
from sae_tools.report.contents import Contents
from sae_tools.report.marker import is_all_report
from sae_tools.report.page import render
from sae_tools.report.shards import write_shards
from sae_tools.runs import atomic

Progress = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and of how much."""


NOT_REPLACED = "neither empty nor a report of sae_tools alone"


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


def write_report(contents: Contents, output: Path, progress: Progress = quiet) -> Path:
    """Write the report to `output`, a file, or a folder if the contents are sharded; what is there is replaced.

    Returns the page's path. Raises UserError where it cannot be written, or where a folder would take the place of what
    is neither empty nor a report; then what was there stays.
    """
    if contents.sharded and output.exists() and not replaceable(output):
        raise UserError(f"{output} is there and is {NOT_REPLACED}; name another folder with -o.")
    total = count(contents)

    def counted() -> Iterator[Blob]:
        for done, blob in enumerate(encoded(contents), 1):
            yield blob
            progress("packing", done, total)

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if contents.sharded:
            with atomic.creating_folder(output) as folder:
                write_shards(contents, counted(), folder)
            return output / "index.html"
        with atomic.replacing(output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(render(contents, counted()))
        return output
    except OSError as error:
        raise UserError(f"the report cannot be written to {output} ({error.strerror}).") from None


def replaceable(folder: Path) -> bool:
    """Whether a report as a folder may take the place of `folder`: it is one, with nothing else in it, or empty."""
    return folder.is_dir() and (is_all_report(folder) or not any(folder.iterdir()))


def build_date() -> str:
    """Now, or what SOURCE_DATE_EPOCH says (seconds since 1970), ISO 8601 in UTC."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None and not epoch.isdecimal():
        raise UserError(f"SOURCE_DATE_EPOCH is {epoch!r}, but must be a number of seconds.")
    now = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
