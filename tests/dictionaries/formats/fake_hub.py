"""A stand-in for the Hugging Face hub: tests use no network."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for `owner/repository/…`, in `folder`, of which only what is asked for is handed out."""
    there, here = folder / "hub", folder / "cache"

    def snapshot_download(repository: str, *, allow_patterns: list[str], **_: Any) -> str:
        root = there / repository
        if not root.is_dir():
            raise OSError(f"404: {repository} not found.\nSecond line")
        for file in (path for path in root.rglob("*") if path.is_file()):
            name = str(file.relative_to(root))
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_patterns):
                (here / repository / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, here / repository / name)
        return str(here / repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return there
