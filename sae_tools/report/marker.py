"""How a file is known to be a report of ours, which may be replaced by another. Imports nothing that takes time."""

from __future__ import annotations

from pathlib import Path

MARKER = '<meta name="generator" content="sae_tools report">'
"""Stands in the head of every report."""
MARKER_WITHIN = 1024
"""Bytes of the file within which MARKER stands."""
OWN = ("index.html", "data", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What is in a folder of ours; the last ones file managers put there."""


def is_report(path: Path) -> bool:
    """Whether there is a report of ours at `path`: a file, or a folder with its page in it."""
    try:
        with open(path / "index.html" if path.is_dir() else path, "rb") as file:
            return MARKER.encode() in file.read(MARKER_WITHIN)
    except OSError:
        return False


def is_all_report(folder: Path) -> bool:
    """Whether a folder is a report of ours and holds nothing else that would be lost with it."""
    if folder.is_symlink() or not folder.is_dir() or not is_report(folder):
        return False
    data = folder / "data"
    inside = list(data.iterdir()) if data.is_dir() and not data.is_symlink() else []
    return all(path.name in OWN for path in folder.iterdir()) and all(
        path.name in OWN or (path.suffix == ".js" and not path.is_dir()) for path in inside
    )
