"""What a report is about: runs of ours and anybody's SAEs, opened with the model and the text they belong to.

A run says everything itself. An SAE's metadata (`cfg.json`) usually names its model, site and text; what it leaves
open, or names in a way that would need the network, is asked of the user (`SourceConfig`), never guessed or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_tools.analysis.metadata import data_notes, data_of, model_of, must_be_named, rows_of, same_text, site_name
from sae_tools.analysis.origins import Origin, find_origins, name_origins
from sae_tools.analysis.subject import Subject
from sae_tools.config import DataConfig, JobConfig, RowsConfig
from sae_tools.config_sources import SourceConfig
from sae_tools.device import pick_device
from sae_tools.dictionaries import Dictionary
from sae_tools.dictionaries.formats import read_dictionary, unfold
from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.load import LanguageModel, load_configured
from sae_tools.models.parameters import weights_fingerprint
from sae_tools.models.sites import Site, resolve_site
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE
from sae_tools.runs.tensors import load_tensors
from sae_tools.spaces.build import SITES_OF
from sae_tools.spaces.space import Space


@dataclass(frozen=True)
class Source:
    """A dictionary to be shown."""

    id: str
    """Letters, digits, `.`, `_` and `-`; unique in a report: the dictionary's name, with `<run>--` before it where
    several runs or SAEs are shown."""
    path: Path
    """Folder of the checkpoint."""
    run: Path | None
    """The run of ours that it belongs to."""
    config: JobConfig | None
    """That run's."""
    tokens: int | None
    """Trained on; None where the metadata does not say."""
    metadata: dict[str, Any]
    """cfg.json's, with `architecture`, `d_in` and `d_sae` beside it."""
    subject: Subject
    """In its own space (an SAE of others: the site's own coordinates), on the device that the report is made on."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on what was taken for granted, as nobody said it."""


@dataclass(frozen=True)
class Group:
    """Sources that are read on one corpus: the same model, text and rows."""

    model: LanguageModel
    data: DataConfig
    rows: RowsConfig
    sources: list[Source]


def open_sources(paths: list[Path], cfg: SourceConfig, model: LanguageModel | None = None) -> list[Group]:
    """Everything at `paths`, in their order, grouped by what can share a corpus; a model is loaded once.

    paths: run directories (every dictionary, at the newest checkpoint that all of them have), checkpoint folders in
        them, or other folders or files of a dictionary, in any format that is read.
    cfg: `model`, `data` and `rows` say what is used instead of what an SAE's metadata says, setting by setting; `site`
        where an SAE reads that does not know its space. Where only runs are given the settings hold for them, else
        runs keep their own.
    model: one in memory for all of them; nothing is loaded then.

    Raises UserError, one sentence, before any model is loaded for all that an SAE's metadata leaves open, and for what
    is missing, damaged, given twice or does not fit together, and for a model
    or a text that could only come from the network and that the user did not name.
    """
    origins = find_origins(paths)
    only_runs = all(origin.by_run for origin in origins)
    for setting, given in (("site", cfg.site), ("writes", cfg.writes)):
        if only_runs and given is not None:
            raise UserError(f"{setting}={given} is for an SAE that is no run of ours; {paths[0]} knows its own sites.")
    own = cfg.model_copy(update={"model": None, "data": None, "rows": None})
    models = _Models(cfg.device, model)
    groups: dict[tuple[int, str, RowsConfig], Group] = {}
    opened = []
    for origin in origins:
        dictionary, metadata = read_dictionary(origin.path)
        if origin.config is None:
            knows_site = _knows_space(origin, metadata)
            must_be_named(origin, metadata, cfg, needs_model=model is None, needs_site=not knows_site)
        opened.append((dictionary, metadata))
    for origin, name in zip(origins, name_origins(origins), strict=True):
        settings = own if origin.by_run and not only_runs else cfg
        dictionary, metadata = opened.pop(0)
        lm = models.of(origin, metadata, settings)
        subject = _subject(name, origin, dictionary, metadata, settings, lm)
        data, rows = data_of(origin, metadata, settings, lm), rows_of(origin, metadata, settings)
        notes = data_notes(origin, metadata, settings)
        source = Source(name, origin.path, origin.run, origin.config, _tokens(metadata), metadata, subject, notes)
        groups.setdefault((id(lm), same_text(data), rows), Group(lm, data, rows, [])).sources.append(source)
    return list(groups.values())


@dataclass
class _Models:
    """Loads each model once."""

    device: str
    given: LanguageModel | None
    loaded: dict[tuple[str, str | None, str, int | None], LanguageModel] = field(default_factory=dict)

    def of(self, origin: Origin, metadata: dict[str, Any], cfg: SourceConfig) -> LanguageModel:
        if self.given is not None:
            return _checked(self.given, origin)
        wanted = model_of(origin, metadata, cfg)
        local = Path(wanted.name).expanduser()
        place = str(local.resolve()) if wanted.name != "bundled" and local.is_dir() else wanted.name
        key = (place, wanted.revision, wanted.dtype, wanted.shuffle_weights)
        if key not in self.loaded:
            try:
                self.loaded[key] = load_configured(wanted, self.device)
            except UserError as error:
                raise UserError(f"{str(error).rstrip('.')}; name another with model.name=FOLDER.") from None
        named = cfg.model is not None and "name" in cfg.model.model_fields_set
        return self.loaded[key] if named else _checked(self.loaded[key], origin)


def _checked(model: LanguageModel, origin: Origin) -> LanguageModel:
    """The model, if it is the one that the run was trained on as far as the run's provenance tells."""
    about = ((origin.config.provenance or {}).get("model") if origin.config else None) or {}
    expected, dtype = about.get("weights_fingerprint"), str(model.dtype).removeprefix("torch.")
    if expected is not None and about.get("dtype") == dtype and weights_fingerprint(model.bridge) != expected:
        raise UserError(
            f"{origin.run}: the weights of {model.name} are not those that it was trained on; name the right model: "
            f"model.name=FOLDER."
        )
    return model


def _subject(
    name: str,
    origin: Origin,
    dictionary: Dictionary,
    metadata: dict[str, Any],
    cfg: SourceConfig,
    model: LanguageModel,
) -> Subject:
    space, target = _saved_space(origin, metadata), None
    if space is None:
        space = identity_space(_site(origin, metadata, cfg, model), model, metadata)
        if two_sites(metadata):
            target = identity_space(_written_site(origin, metadata, cfg, model), model, metadata)
        for key, which, wanted, setting in (
            ("d_in", space, dictionary.d_in, "site"),
            ("d_out", target or space, dictionary.d_out, "writes"),
        ):
            if wanted != which.site.width:
                raise UserError(
                    f"{origin.path}: the SAE has {key} = {wanted}, but {which.site.name} of {model.name} is "
                    f"{which.site.width} wide; name another site (such as {setting}=mlp_out@3) or model "
                    f"(model.name=FOLDER)."
                )
    else:
        if two_sites(metadata):
            target = Space.from_state(*load_tensors(origin.path / TARGET_SPACE))
        folded = metadata.get("coordinates") != "space"
        for key, which, wanted, file in (
            ("d_in", space, dictionary.d_in, SPACE),
            ("d_out", target or space, dictionary.d_out, TARGET_SPACE if target else SPACE),
        ):
            if resolve_site(model, which.site.name).width != which.site.width:
                raise UserError(
                    f"{origin.path}: its site {which.site.name} is {which.site.width} wide, but not in {model.name}; "
                    f"name the model that it was trained on: model.name=FOLDER."
                )
            if wanted != (which.site.width if folded else which.dim):
                raise UserError(f"{origin.path}: {key} = {wanted} does not fit its {file}.")
        dictionary = unfold(dictionary, space, target) if folded else dictionary
    device = pick_device(cfg.device)
    target = None if target is None else target.to(device)
    return Subject(name, space.site, space.to(device), dictionary.requires_grad_(False).to(device), target)


def two_sites(metadata: dict[str, Any]) -> bool:
    """Whether the metadata is that of a dictionary which writes elsewhere than it reads."""
    return "transcoder" in str(metadata.get("architecture"))


def _saved_space(origin: Origin, metadata: dict[str, Any]) -> Space | None:
    """The space that a checkpoint of ours was trained in; None where only the folded export is there."""
    if _knows_space(origin, metadata):
        return Space.from_state(*load_tensors(origin.path / SPACE))
    if isinstance(metadata.get("space"), dict) and metadata.get("coordinates") == "space":
        raise UserError(f"{origin.path}: the weights are those of a space, and its {SPACE} is missing.")
    return None


def _knows_space(origin: Origin, metadata: dict[str, Any]) -> bool:
    files = [SPACE, TARGET_SPACE] if two_sites(metadata) else [SPACE]
    return isinstance(metadata.get("space"), dict) and all((origin.path / file).is_file() for file in files)


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


def _site(origin: Origin, metadata: dict[str, Any], cfg: SourceConfig, model: LanguageModel) -> Site:
    name = site_name(metadata, cfg)
    if name is None:
        raise UserError(f"{origin.path}: its metadata names no site; name it: site=mlp_out@3, or another.")
    if cfg.site is None and metadata.get("hook_head_index") is not None:
        raise UserError(f"{origin.path}: an SAE on one attention head (hook_head_index) is not supported.")
    try:
        return resolve_site(model, name)
    except UserError as error:
        raise UserError(
            f"{origin.path}: {str(error).rstrip('.')}; name the right one, such as site=mlp_out@3."
        ) from None


def _written_site(origin: Origin, metadata: dict[str, Any], cfg: SourceConfig, model: LanguageModel) -> Site:
    name = cfg.writes or metadata.get("site_out") or metadata.get("hook_name_out")
    if not isinstance(name, str):
        raise UserError(f"{origin.path}: its metadata does not say where it writes; name it: writes=mlp_out@3.")
    try:
        return resolve_site(model, name)
    except UserError as error:
        raise UserError(
            f"{origin.path}: {str(error).rstrip('.')}; name the one that it writes, such as writes=mlp_out@3."
        ) from None


def _tokens(metadata: dict[str, Any]) -> int | None:
    counts = (metadata.get(key) for key in ("training_tokens", "tokens"))
    return next((count for count in counts if type(count) is int and count >= 0), None)
