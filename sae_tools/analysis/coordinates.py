"""In which coordinates a dictionary acts: those of the spaces in its folder, or its sites' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_tools.analysis.subject import Subject
from sae_tools.dictionaries import Dictionary
from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.language_model import LanguageModel
from sae_tools.models.sites import Site, resolve_site
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE
from sae_tools.runs.tensors import load_tensors
from sae_tools.spaces.build import SITES_OF
from sae_tools.spaces.space import Space


class Spaces(NamedTuple):
    """Of one dictionary."""

    read: Space
    target: Space | None
    """What it writes; None: the same."""

    @property
    def written(self) -> Space:
        return self.read if self.target is None else self.target

    def subject(self, name: str, dictionary: Dictionary) -> Subject:
        """On the dictionary's device."""
        device = dictionary.b_dec.device
        target = None if self.target is None else self.target.to(device)
        return Subject(name, self.read.site, self.read.to(device), dictionary, target)


def two_sites(metadata: dict[str, Any]) -> bool:
    """Whether the metadata is that of a dictionary which writes elsewhere than it reads."""
    return "transcoder" in str(metadata.get("architecture"))


def knows_spaces(folder: Path, metadata: dict[str, Any]) -> bool:
    """Whether it is a checkpoint of ours with the spaces that it was trained in."""
    return isinstance(metadata.get("space"), dict) and not _missing(folder, metadata)


def _missing(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """Files of spaces."""
    files = [SPACE, TARGET_SPACE] if two_sites(metadata) else [SPACE]
    return [file for file in files if not (folder / file).is_file()]


def saved_spaces(folder: Path, metadata: dict[str, Any]) -> Spaces | None:
    """Those that a checkpoint of ours was trained in; None where only the folded export is there. Raises UserError
    where the weights are of no use without them."""
    if knows_spaces(folder, metadata):
        space = Space.from_state(*load_tensors(folder / SPACE))
        return Spaces(space, Space.from_state(*load_tensors(folder / TARGET_SPACE)) if two_sites(metadata) else None)
    if metadata.get("coordinates") == "space":
        missing = [*_missing(folder, metadata), "metadata.space"][0]
        raise UserError(f"{folder}: the weights are those of a space, and its {missing} is missing.")
    return None


def spaces_at_sites(
    model: LanguageModel,
    dictionary: Dictionary,
    metadata: dict[str, Any],
    site: str | None,
    writes: str | None,
    about: str,
) -> Spaces:
    """The own coordinates of the sites that are named, or else of those that the metadata names.

    about: what errors begin with. Raises UserError where nobody names a site, and where the dictionary does not fit.
    """
    if site is None and metadata.get("hook_head_index") is not None:
        raise UserError(f"{about}: an SAE on one attention head (hook_head_index) is not supported.")
    names = site or metadata.get("site") or metadata.get("hook_name")
    read = _site(model, names, "names no site", "site", dictionary.d_in, "d_in", about)
    space = identity_space(read, model, metadata)
    out = writes or metadata.get("site_out") or metadata.get("hook_name_out")
    if out is None and not two_sites(metadata) and dictionary.d_in == dictionary.d_out:
        return Spaces(space, None)
    written = _site(model, out, "does not say where it writes", "writes", dictionary.d_out, "d_out", about)
    return Spaces(space, None if written.name == read.name else identity_space(written, model, metadata))


def _site(model: LanguageModel, name: Any, lacking: str, setting: str, width: int, key: str, about: str) -> Site:
    if not isinstance(name, str):
        raise UserError(f"{about}: its metadata {lacking}; name it, such as {setting}='mlp_out@3'.")
    try:
        site = resolve_site(model, name)
    except UserError as error:
        raise UserError(
            f"{about}: {str(error).rstrip('.')}; name the right one, such as {setting}='mlp_out@3'."
        ) from None
    if site.width != width:
        raise UserError(
            f"{about}: it has {key} = {width}, but {site.name} of {model.name} is {site.width} wide; name another site "
            f"(such as {setting}='mlp_out@3') or model (model.name=FOLDER)."
        )
    return site


def identity_space(site: Site, model: LanguageModel, metadata: dict[str, Any]) -> Space:
    """The site's own coordinates, float32.

    Where the metadata says that the model was loaded with `center_writing_weights` (TransformerLens, models with
    LayerNorm), the SAE has seen the stream without its mean over the channels, and so the space takes it off.
    """
    kind = next(kind for kind, sites in SITES_OF.items() if site.kind in sites and kind != "logit_update")
    zeros = torch.zeros(site.width)
    loading = metadata.get("model_from_pretrained_kwargs")
    centred = isinstance(loading, dict) and loading.get("center_writing_weights") is True
    matrix = None
    if (
        centred
        and site.width == model.d_model
        and site.kind not in ("mlp_acts", "mlp_in", "hook")
        and FinalNorm.of(model).centres
    ):
        matrix = torch.eye(site.width) - 1 / site.width
    rank = site.width if matrix is None else site.width - 1
    return Space(kind, site, site.width, rank, "none", 1.0, zeros, zeros, matrix, matrix)
