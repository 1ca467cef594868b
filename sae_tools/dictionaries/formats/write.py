"""A dictionary into any of the formats."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.dictionary_learning import write_dictionary_learning
from sae_tools.dictionaries.formats.saelens import write_saelens
from sae_tools.dictionaries.formats.sparsify import write_sparsify
from sae_tools.dictionaries.formats.support import FORMATS, Format
from sae_tools.errors import UserError
from sae_tools.runs.atomic import creating_folder, replacing
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE

WRITERS = {
    "saelens": write_saelens,
    "dictionary-learning": write_dictionary_learning,
    "sparsify": write_sparsify,
}


def write_dictionary(
    dictionary: Dictionary, path: str | Path, to: Format = "saelens", metadata: dict[str, Any] | None = None
) -> list[str]:
    """Write the folder `path`, in the coordinates that the dictionary is in, and return sentences on what the program
    of that format will not find in it.

    metadata: JSON-able, what the file is to say of the dictionary (`model_name`, `hook_name`, `context_size`, …); None:
    `dictionary.metadata`. The folder appears whole or not at all. Raises UserError for an unknown format, for an
    architecture that it does not have (`support.py`) and for a folder that holds something.
    """
    path = Path(path)
    if to not in FORMATS:
        raise UserError(f"Format {to!r} is unknown; expected {', '.join(FORMATS)}.")
    check_destination(path)
    with creating_folder(path) as folder:
        try:
            return WRITERS[to](dictionary, folder, metadata)
        except (TypeError, ValueError) as error:
            if "JSON" not in str(error) and "serializable" not in str(error):
                raise
            raise UserError(f"The metadata cannot be written as JSON ({error}).") from None


def check_destination(path: Path) -> None:
    """Raises UserError where something is there already."""
    if (path.exists() or path.is_symlink()) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty folder; name another one.")


def carry_spaces(source: str | Path, destination: Path) -> None:
    """Copy the spaces of a checkpoint of ours, without which weights in a space's coordinates cannot be applied."""
    for name in (SPACE, TARGET_SPACE):
        path = Path(source) / name
        if path.is_file():
            with replacing(destination / name) as temporary:
                shutil.copyfile(path, temporary)


save_dictionary = write_dictionary
