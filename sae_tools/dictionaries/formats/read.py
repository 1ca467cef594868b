"""A dictionary from a path or a name, in whichever format it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.hub import read_from_hub
from sae_tools.dictionaries.formats.local import read_local


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
        return read_from_hub(path, fold_decoder_norm=fold_decoder_norm)
    return read_local(Path(path).expanduser(), fold_decoder_norm=fold_decoder_norm)
