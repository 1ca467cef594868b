"""How a file is known to be a report of ours, which may be replaced by another. Imports nothing that takes time."""

from __future__ import annotations

from pathlib import Path

MARKER = '<meta name="generator" content="sae_tools report">'
"""Stands in the head of every report."""
MARKER_WITHIN = 1024
"""Bytes of the file within which MARKER stands."""


def is_report(path: Path) -> bool:
    """Whether there is a report of ours at `path`: a file, or a folder with its page in it."""
    try:
        with open(path / "index.html" if path.is_dir() else path, "rb") as file:
            return MARKER.encode() in file.read(MARKER_WITHIN)
    except OSError:
        return False
