"""A report as a folder, for more features than one file should hold: the page, and its data beside it.

    <folder>/index.html
    <folder>/data/<name>.js     saeBlob("<name>", "<base64>"), which the page loads when it needs it

Scripts, and not fetched files, since a page that was opened from the disk may load only those.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sae_tools.report.blobs import Blob
from sae_tools.report.contents import Contents
from sae_tools.report.page import render


def write_shards(contents: Contents, blobs: Iterable[Blob], folder: Path) -> None:
    """Fill `folder`, which is there and empty."""
    data = folder / "data"
    data.mkdir()
    for blob in blobs:
        (data / shard_name(blob.name)).write_text(f"saeBlob({json.dumps(blob.name)},{json.dumps(blob.text)})\n")
    with open(folder / "index.html", "w", encoding="utf-8") as file:
        file.writelines(render(contents, []))


def shard_name(blob: str) -> str:
    """File of a blob in data/. Blobs' names are made of ids and numbers, so no two have the same."""
    return f"{blob.replace('/', '-')}.js"
