"""A dictionary from a path, in whichever format it is; its files' names tell which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats import dictionary_learning, releases, saelens, sparsify
from sae_tools.dictionaries.formats.files import one_line
from sae_tools.dictionaries.formats.support import Format
from sae_tools.errors import UserError

LOOKED_FOR = (
    f"{saelens.CFG} with {saelens.WEIGHTS} (SAELens), {dictionary_learning.WEIGHTS} with "
    f"{dictionary_learning.CONFIG} (dictionary_learning), {sparsify.CFG} with {sparsify.WEIGHTS} (sparsify), "
    f"{releases.LOOKED_FOR}"
)


def read_local(path: Path, *, fold_decoder_norm: bool | None = None) -> tuple[Dictionary, dict[str, Any]]:
    """As `read_dictionary`, of a folder or file."""
    path = folder_meant(path)
    found = format_at(path)
    if isinstance(found, releases.Release):
        source = releases.Source(path, path.absolute().as_posix())
        return releases.read_release(found, source, fold_decoder_norm=fold_decoder_norm)
    if found == "saelens":
        return saelens.load_saelens(path, fold_decoder_norm=fold_decoder_norm)
    if found == "sparsify":
        return sparsify.read_sparsify(path)
    return dictionary_learning.read_dictionary_learning(path, fold_decoder_norm=fold_decoder_norm)


def folder_meant(path: Path) -> Path:
    """The folder, where a file is named that stands for its own (params.npz); else the path."""
    return path.parent if path.name in releases.IN_FOLDERS and path.is_file() else path


def format_at(path: Path) -> Format | releases.Release:
    """By the files' names alone. Raises UserError, naming what was looked for, where they are those of no format."""
    try:
        if path.is_dir():
            here = {entry.name for entry in path.iterdir()}
            if saelens.CFG in here and (saelens.WEIGHTS in here or sparsify.WEIGHTS not in here):
                return "saelens"
            if sparsify.CFG in here:
                return "sparsify"
            if dictionary_learning.WEIGHTS in here:
                return "dictionary-learning"
            if (release := releases.release_at(path)) is not None:
                return release
            if files := releases.single_files(path):
                raise UserError(f"{path} holds {len(files)} of a release's files: name one, such as {path / files[0]}.")
            run = " and is a run: name one of its checkpoint folders" if "config.yaml" in here else ""
            raise UserError(f"{path} holds no dictionary{run}; looked for {LOOKED_FOR}.")
        if (release := releases.release_at(path)) is not None:
            return release
        if path.suffix in (".pt", ".pth", ".bin") and path.exists():
            return "dictionary-learning"
        if not path.exists():
            raise UserError(f"Cannot read {path}: there is no such file or folder.")
    except (OSError, ValueError) as error:  # such as a loop of links, or a name that cannot be one
        raise UserError(f"Cannot read {path}: {one_line(getattr(error, 'strerror', None) or error)}.") from None
    raise UserError(f"{path} is no dictionary: give a folder with {LOOKED_FOR}, or the path of an ae.pt.")
