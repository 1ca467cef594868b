"""Dictionaries on the Hugging Face hub: by SAELens's release and id, or by repository and folder.

    saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre
    hub:EleutherAI/sae-llama-3-8b-32x/layers.10

The registry of releases is a file of the package sae_lens, which is looked at without importing it. Only the few files
of the dictionary are fetched, then read as from a disk: what they hold is trusted no more. Of the 170 releases that
sae_lens 6.54.12 lists, 167 are in layouts that are read (a test counts them); two of temporal SAEs and one of a
cross-layer transcoder are refused.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats import dictionary_learning, saelens, sparsify
from sae_tools.dictionaries.formats.files import one_line
from sae_tools.dictionaries.formats.local import format_at, read_local
from sae_tools.dictionaries.formats.releases import IN_FOLDERS, LAYOUTS, SINGLE_FILES, Release, Source, read_release
from sae_tools.errors import UserError

SAELENS = tuple(f"{{path}}/{file}" for file in (saelens.CFG, saelens.WEIGHTS))
FILES: dict[str | None, tuple[str, ...]] = {
    None: SAELENS,
    "sae_lens": SAELENS,
    "dictionary_learning_1": tuple(
        f"{{path}}/{file}" for file in (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS)
    ),
    "sparsify": (f"{{path}}/{sparsify.CFG}", f"{{path}}/{sparsify.WEIGHTS}", f"{{above}}/{sparsify.RUN}"),
    **{loader: release.files for loader, release in LAYOUTS.items()},
}
"""The registry's names of formats, of those that are read here, and the files that one of its dictionaries needs.
{path} is the registry's path, of a folder or a file, {stem} that without .pt, {above} the folder that it is in."""
IN_A_FOLDER = tuple(dict.fromkeys(file for files in FILES.values() for file in files if "{path}" not in files))
"""What is fetched where only a folder is named: the files of every format, of which a folder has those of one."""
ALONE = (*SINGLE_FILES, f"{{above}}/{dictionary_learning.CONFIG}")
"""What is fetched where a file is named: it, and what may say more of it."""


class Place(NamedTuple):
    """Where a dictionary is on the hub, and what the registry says beside the files."""

    repository: str
    folder: str
    """The dictionary's folder there, or its file."""
    files: tuple[str, ...]
    """As FILES has them."""
    overrides: dict[str, Any]
    """Settings that replace those of cfg.json."""
    norm_scaling_factor: float | None
    said: dict[str, Any]
    """Metadata."""
    loader: str | None = None
    """The registry's name of the format; None for its own and where no registry was asked."""


def read_from_hub(name: str, *, fold_decoder_norm: bool | None = None) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) of `saelens:RELEASE/SAE_ID` or `hub:OWNER/REPOSITORY/FOLDER`; the metadata has `source`.

    Raises UserError for a name that is none, a release or id that the registry does not have, a release in a format
    that is not read here, and for what the hub or the network refuse.
    """
    scheme, _, rest = name.partition(":")
    place = registered(rest) if scheme == "saelens" else _on_hub(rest)
    folder = fetch(place)
    release = LAYOUTS.get(place.loader or "") if scheme == "saelens" else format_at(folder)
    if isinstance(release, Release):
        at = Source(folder, f"{place.repository}/{place.folder}".rstrip("/"), place.norm_scaling_factor)
        dictionary, metadata = read_release(release, at, fold_decoder_norm=fold_decoder_norm)
    elif (folder / saelens.CFG).is_file() and (folder / saelens.WEIGHTS).is_file():
        dictionary, metadata = saelens.load_saelens(
            folder,
            fold_decoder_norm=fold_decoder_norm,
            norm_scaling_factor=place.norm_scaling_factor,
            overrides=place.overrides,
        )
    else:
        dictionary, metadata = read_local(folder, fold_decoder_norm=fold_decoder_norm)
    if place.loader == "dictionary_learning_1" and "hook_name" not in metadata:
        # where SAELens takes its releases of that format to be
        layer = metadata.get("trainer", {}).get("layer")
        metadata |= {"hook_name": f"blocks.{layer}.hook_resid_post"} if type(layer) is int else {}
    about = {key: value for key, value in place.overrides.items() if key in saelens.METADATA}
    dictionary.metadata = {**metadata, **about, **place.said, "source": name}
    return dictionary, dict(dictionary.metadata)


def fetch(place: Place) -> Path:
    """The local folder with the dictionary's files, or its file."""
    from huggingface_hub import snapshot_download

    path = place.folder.strip("/")
    names = {"path": path, "stem": path.removesuffix(".pt"), "above": path.rpartition("/")[0]}
    patterns = [file.format(**names).lstrip("/") for file in place.files]
    try:
        root = snapshot_download(place.repository, allow_patterns=patterns)
    except Exception as error:  # whatever the hub or the network raise
        raise UserError(
            f"hub:{place.repository}: cannot be fetched ({one_line(error) or type(error).__name__})."
        ) from None
    return Path(root) / path


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
    if loader not in FILES:
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
        FILES[loader],
        found.get("config_overrides") or {},
        sae.get("norm_scaling_factor"),
        said,
        loader,
    )


def _on_hub(rest: str) -> Place:
    owner, _, rest_of = rest.partition("/")
    repository, _, folder = rest_of.partition("/")
    if not owner or not repository or ".." in folder.split("/"):
        raise UserError(f"'hub:{one_line(rest)}' does not name a folder; expected hub:OWNER/REPOSITORY/FOLDER.")
    folder, _, file = folder.rpartition("/") if folder.endswith(IN_FOLDERS) else (folder, "", "")
    files = ALONE if folder.endswith((".pt", ".pth", ".safetensors")) else IN_A_FOLDER
    return Place(f"{owner}/{repository}", folder, files, {}, None, {})


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
