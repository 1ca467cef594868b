"""Dictionaries on the Hugging Face hub: by SAELens's release and id, or by repository and folder.

    saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre
    hub:EleutherAI/sae-llama-3-8b-32x/layers.10

The registry of releases is a file of the package sae_lens, which is looked at without importing it. Only the few files
of the dictionary are fetched, then read as from a disk: what they hold is trusted no more.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats import dictionary_learning, saelens, sparsify
from sae_tools.dictionaries.formats.files import one_line
from sae_tools.errors import UserError

LOADERS = {
    None: "SAELens",
    "sae_lens": "SAELens",
    "dictionary_learning_1": "dictionary_learning",
    "sparsify": "sparsify",
}
"""The registry's names of formats, of those that are read here."""
FILES = (
    saelens.CFG,
    saelens.WEIGHTS,
    sparsify.WEIGHTS,
    dictionary_learning.CONFIG,
    dictionary_learning.WEIGHTS,
)


class Place(NamedTuple):
    """Where a dictionary is on the hub, and what the registry says beside the files."""

    repository: str
    folder: str
    overrides: dict[str, Any]
    """Settings that replace those of cfg.json."""
    norm_scaling_factor: float | None
    said: dict[str, Any]
    """Metadata."""
    resid_post: bool = False
    """Whether SAELens takes its releases of that format to be on the residual stream after the layer they name."""


def read_from_hub(name: str, *, fold_decoder_norm: bool | None = None) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) of `saelens:RELEASE/SAE_ID` or `hub:OWNER/REPOSITORY/FOLDER`; the metadata has `source`.

    Raises UserError for a name that is none, a release or id that the registry does not have, a release in a format
    that is not read here, and for what the hub or the network refuse.
    """
    from sae_tools.dictionaries.formats.read import read_dictionary

    scheme, _, rest = name.partition(":")
    place = registered(rest) if scheme == "saelens" else _on_hub(rest)
    folder = fetch(place)
    if (folder / saelens.CFG).is_file() and (folder / saelens.WEIGHTS).is_file():
        dictionary, metadata = saelens.load_saelens(
            folder,
            fold_decoder_norm=fold_decoder_norm,
            norm_scaling_factor=place.norm_scaling_factor,
            overrides=place.overrides,
        )
    else:
        dictionary, metadata = read_dictionary(folder, fold_decoder_norm=fold_decoder_norm)
    if place.resid_post and "hook_name" not in metadata:
        layer = metadata.get("trainer", {}).get("layer")
        metadata |= {"hook_name": f"blocks.{layer}.hook_resid_post"} if type(layer) is int else {}
    about = {key: value for key, value in place.overrides.items() if key in saelens.METADATA}
    dictionary.metadata = {**metadata, **about, **place.said, "source": name}
    return dictionary, dict(dictionary.metadata)


def fetch(place: Place) -> Path:
    """The local folder with the dictionary's files."""
    from huggingface_hub import snapshot_download

    folder = place.folder.strip("/")
    inside = f"{folder}/" if folder else ""
    above = f"{folder.rpartition('/')[0]}/".lstrip("/")
    try:
        root = snapshot_download(
            place.repository, allow_patterns=[*(inside + file for file in FILES), above + sparsify.RUN]
        )
    except Exception as error:  # whatever the hub or the network raise
        raise UserError(
            f"hub:{place.repository}: cannot be fetched ({one_line(error) or type(error).__name__})."
        ) from None
    return Path(root) / folder


def registered(rest: str) -> Place:
    """Of `RELEASE/SAE_ID` by SAELens's registry. An id may have slashes, a release has none."""
    release, _, sae_id = rest.partition("/")
    if not release or not sae_id:
        raise UserError(f"'saelens:{one_line(rest)}' does not name an SAE; expected saelens:RELEASE/SAE_ID.")
    registry = _registry()
    if release not in registry:
        raise UserError(
            f"SAELens's registry has no release {one_line(release)!r}; hub:OWNER/REPOSITORY/FOLDER needs none."
        )
    found = registry[release]
    loader = found.get("conversion_func")
    if loader not in LOADERS:
        raise UserError(f"The release {release} is stored in a format of its own ({loader}), which is not read here.")
    saes = {str(sae["id"]): sae for sae in found["saes"]}
    if sae_id not in saes:
        known = ", ".join(list(saes)[:3])
        raise UserError(
            f"The release {release} has no SAE {one_line(sae_id)!r}; it has {known} and others, {len(saes)} in all."
        )
    sae = saes[sae_id]
    said = {"release": release, "sae_id": sae_id}
    said |= {"neuronpedia_id": sae["neuronpedia"]} if isinstance(sae.get("neuronpedia"), str) else {}
    return Place(
        found["repo_id"],
        str(sae["path"]),
        found.get("config_overrides") or {},
        sae.get("norm_scaling_factor"),
        said,
        resid_post=loader == "dictionary_learning_1",
    )


def _on_hub(rest: str) -> Place:
    owner, _, rest_of = rest.partition("/")
    repository, _, folder = rest_of.partition("/")
    if not owner or not repository or ".." in folder.split("/"):
        raise UserError(f"'hub:{one_line(rest)}' does not name a folder; expected hub:OWNER/REPOSITORY/FOLDER.")
    return Place(f"{owner}/{repository}", folder, {}, None, {})


def _registry() -> dict[str, Any]:
    """Releases by name, from SAELens's own file."""
    package = importlib.util.find_spec("sae_lens")
    if package is None or package.origin is None:
        raise UserError(
            "saelens:RELEASE/SAE_ID needs the package sae_lens, which has the registry of releases; without it name "
            "hub:OWNER/REPOSITORY/FOLDER."
        )
    with open(Path(package.origin).parent / "pretrained_saes.yaml", encoding="utf-8") as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
