"""A dictionary from a path or a name, in whichever format it is."""

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


def load_dictionary(path: str | Path, *, fold_decoder_norm: bool | None = None) -> Dictionary:
    """The dictionary at `path`, float32, on the CPU; `.metadata` has what its file says of it.

    path: a folder or file that `read_dictionary` takes, or `saelens:RELEASE/SAE_ID` or `hub:OWNER/REPOSITORY/FOLDER` on
        the Hugging Face hub: only then is the network used.

    >>> sae = load_dictionary("runs/quickstart/resid/checkpoints/100000")  # doctest: +SKIP
    >>> sae(activations), sae.metadata["hook_name"], sae.metadata["activation_unit"]  # doctest: +SKIP
    """
    return read_dictionary(path, fold_decoder_norm=fold_decoder_norm)[0]


def read_dictionary(path: str | Path, *, fold_decoder_norm: bool | None = None) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) from a folder of SAELens (checkpoints of ours are such), dictionary_learning or sparsify,
    from the path of dictionary_learning's state dict, from a folder or file of a release (`releases/`), or from the hub
    (`hub.py`); which is told by the files there. What a release keeps in the names of its folders (Gemma Scope its
    model and site, Qwen Scope its k) is taken from the path, where somebody kept them.

    fold_decoder_norm: rescale features to decoder rows of norm 1, where that changes nothing. None: as each reader does
    by itself. metadata always has `format`, `architecture`, `d_in`, `d_sae`, `d_out` and `activation_unit`.

    Raises UserError, one sentence, where nothing is recognised and for whatever is damaged or not supported.
    """
    if isinstance(path, str) and path.startswith(("saelens:", "hub:")):
        from sae_tools.dictionaries.formats.hub import read_from_hub

        return read_from_hub(path, fold_decoder_norm=fold_decoder_norm)
    path = Path(path).expanduser()
    path = path.parent if path.name in releases.IN_FOLDERS and path.is_file() else path
    found = format_at(path)
    if isinstance(found, releases.Release):
        source = releases.Source(path, path.absolute().as_posix())
        return releases.read_release(found, source, fold_decoder_norm=fold_decoder_norm)
    if found == "saelens":
        return saelens.load_saelens(path, fold_decoder_norm=fold_decoder_norm)
    if found == "sparsify":
        return sparsify.read_sparsify(path)
    return dictionary_learning.read_dictionary_learning(path, fold_decoder_norm=fold_decoder_norm)


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
