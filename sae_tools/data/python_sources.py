"""Python sources as a corpus: real text on every machine, without a download.

`python-stdlib` is the interpreter's standard library; `python-installed` is that and the packages installed beside it.
A file's split is decided by a hash of its module path, so a standard-library file that one of them holds out is held
out by the other too. Exact copies are read once (the standard library's copy wins), so none stands in both splits.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_tools.data.documents import Document, Skipped, Split, split_of

NAMES = ("python-stdlib", "python-installed")
_NO_PART_OF_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class PythonFile:
    """One module as a shard with one document."""

    key: str
    path: Path
    decided: Split | None

    def documents(self) -> Iterator[Document | Skipped]:
        text = read_source(self.path)
        yield Skipped(self.key) if text is None else Document(self.key, text)


def read_source(path: Path) -> str | None:
    """The file as text with newlines as `\\n`; None where it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError):
        return None


def module_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(module path such as `json/decoder.py`, file) of every Python source under `root`, in a fixed order."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _NO_PART_OF_THE_LIBRARY)
        for name in sorted(names):
            # `__editable__…` is written by installers and holds paths of this machine.
            if name.endswith(".py") and not name.startswith("__editable__"):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


class PythonCorpus:
    """The standard library (`stdlib`, or `installed`) and the installed packages (`installed`) as a corpus."""

    def __init__(self, installed: bool, stdlib: bool, heldout: float):
        self.name = NAMES[1] if installed else NAMES[0]
        places = sysconfig.get_paths()
        roots = [("stdlib", places["stdlib"])]
        if installed:
            roots += [("installed", root) for root in dict.fromkeys((places["purelib"], places["platlib"]))]
        self.shards: list[PythonFile] = []
        self.skipped = self.copies = self.bytes = 0
        seen: set[bytes] = set()
        digest = hashlib.blake2b(digest_size=16)
        for where, root in roots:
            for module, path in module_files(Path(root)):
                try:
                    content = path.read_bytes()
                    content.decode("utf-8")
                except (OSError, UnicodeDecodeError):
                    self.skipped += 1
                    continue
                content_digest = hashlib.blake2b(content, digest_size=16).digest()
                if content_digest in seen or not content:
                    self.copies += 1
                    continue
                seen.add(content_digest)
                digest.update(module.encode() + b"\0" + content_digest)
                self.bytes += len(content)
                self.shards.append(PythonFile(f"{where}/{module}", path, split_of(module, heldout)))
        self.digest = digest.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "python": ".".join(map(str, sys.version_info[:3])),
            "documents": len(self.shards),
            "bytes": self.bytes,
            "skipped": self.skipped,
            "copies": self.copies,
            "digest": self.digest,
        }
