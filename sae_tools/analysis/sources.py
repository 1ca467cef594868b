"""What a report is about: runs of ours and anybody's SAEs, opened with the model and the text they belong to.

A run says everything itself. An SAE's metadata (`cfg.json`) usually names its model, site and text; what it leaves
open, or names in a way that would need the network, is asked of the user (`SourceConfig`), never guessed or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_tools.analysis.coordinates import knows_spaces, saved_spaces, spaces_at_sites, two_sites
from sae_tools.analysis.metadata import data_notes, data_of, model_of, must_be_named, rows_of, same_text
from sae_tools.analysis.origins import Origin, find_origins, name_origins
from sae_tools.analysis.subject import Subject
from sae_tools.config import DataConfig, JobConfig, RowsConfig
from sae_tools.config_sources import SourceConfig
from sae_tools.device import pick_device
from sae_tools.dictionaries import Dictionary
from sae_tools.dictionaries.formats import read_dictionary, unfold
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel, load_configured
from sae_tools.models.parameters import weights_fingerprint
from sae_tools.models.sites import resolve_site
from sae_tools.runs.checkpoints import SPACE, TARGET_SPACE


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
            knows_site = knows_spaces(origin.path, metadata)
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
    if about.get("dtype") == dtype:
        other = expected is not None and weights_fingerprint(model.bridge) != expected
    else:  # whose weights were rounded
        other = bool(about) and about.get("shuffle_weights") != model.shuffle_weights
    if other:
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
    saved = saved_spaces(origin.path, metadata)
    if saved is None:
        writes = cfg.writes if two_sites(metadata) else None  # which may be said for others beside it
        spaces = spaces_at_sites(model, dictionary, metadata, cfg.site, writes, str(origin.path))
    else:
        spaces = saved
        folded = metadata.get("coordinates") != "space"
        for key, which, wanted, file in (
            ("d_in", spaces.read, dictionary.d_in, SPACE),
            ("d_out", spaces.written, dictionary.d_out, TARGET_SPACE if spaces.target else SPACE),
        ):
            if resolve_site(model, which.site.name).width != which.site.width:
                raise UserError(
                    f"{origin.path}: its site {which.site.name} is {which.site.width} wide, but not in {model.name}; "
                    f"name the model that it was trained on: model.name=FOLDER."
                )
            if wanted != (which.site.width if folded else which.dim):
                raise UserError(f"{origin.path}: {key} = {wanted} does not fit its {file}.")
        dictionary = unfold(dictionary, *spaces) if folded else dictionary
    return spaces.subject(name, dictionary.requires_grad_(False).to(pick_device(cfg.device)))


def _tokens(metadata: dict[str, Any]) -> int | None:
    counts = (metadata.get(key) for key in ("training_tokens", "tokens"))
    return next((count for count in counts if type(count) is int and count >= 0), None)
