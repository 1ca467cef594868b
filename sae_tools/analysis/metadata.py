"""The model, the text and the rows that an SAE belongs to: what its run or its metadata says, and the user's settings.

The user's settings win one by one: `data.source=…` alone leaves the context length that the metadata gives. Nothing is
fetched because metadata names it: what is not on this machine must be named by the user.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sae_tools.analysis.origins import Origin
from sae_tools.config import DataConfig, ModelConfig, RowsConfig, Section
from sae_tools.config_sources import SourceConfig
from sae_tools.data.python_sources import NAMES
from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel

S = TypeVar("S", bound=Section)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What a data set on the hub can be called."""


def model_of(origin: Origin, metadata: dict[str, Any], cfg: SourceConfig) -> ModelConfig:
    """Which model is to be loaded. Raises UserError where nobody names one that can be had without being asked for."""
    if origin.config is not None:
        own = origin.config.model
        local = _local(own.name, origin, "config.json")
        return _merged(own.model_copy(update={"name": local or own.name}), cfg.model)
    local = _known_model(origin, metadata)
    if cfg.model is not None and "name" in cfg.model.model_fields_set:
        local = cfg.model.name
    elif local is None:
        must_be_named(origin, metadata, cfg, needs_model=True, needs_site=False)
    assert local is not None
    seed = metadata.get("model_shuffle_weights")
    if seed is not None and (type(seed) is not int or seed < 0):
        raise UserError(f"{origin.path}: model_shuffle_weights in its metadata is {str(seed)[:100]!r}, and no seed.")
    return _merged(ModelConfig(name=local, shuffle_weights=seed), cfg.model)


def site_name(metadata: dict[str, Any], cfg: SourceConfig) -> str | None:
    """Where an SAE of others reads, as the user or its metadata says; None: nobody does."""
    name = cfg.site or metadata.get("site") or metadata.get("hook_name")
    return name if isinstance(name, str) else None


def must_be_named(
    origin: Origin, metadata: dict[str, Any], cfg: SourceConfig, *, needs_model: bool, needs_site: bool
) -> None:
    """One UserError for all that the user has to name before an SAE that is no run of ours can be shown."""
    unsaid: list[str] = []
    elsewhere: list[str] = []
    settings: list[str] = []
    if needs_model and not _set(cfg.model, "name") and _known_model(origin, metadata) is None:
        name = metadata.get("model_name")
        if isinstance(name, str) and name:
            elsewhere.append(f"its model {name[:100]!r} is no folder on this machine")
            settings.append("model.name=FOLDER or its name on the hub")
        else:
            unsaid.append("no model")
            settings.append("model.name=FOLDER")
    if needs_site and site_name(metadata, cfg) is None:
        unsaid.append("no site")
        settings.append("site=mlp_out@3 or another")
    text = metadata.get("dataset_path")
    if text is not None and not _set(cfg.data, "source") and _known_text(origin, text) is None:
        elsewhere.append(f"its text {str(text)[:100]!r} is not in the SAE's own folder")
        hub = str(text).removeprefix("hub:")[:100]
        there = "the hub's data.source=hub:NAME" if not HUB_NAME.fullmatch(hub) else f"data.source=hub:{hub}"
        settings.append(f"data.source=python-stdlib, a file or folder, or {there}")
    if settings:
        said = [f"its metadata names {' and '.join(unsaid)}"] if unsaid else []
        said += [f"{' and '.join(elsewhere)}, and nothing else is read or fetched unasked"] if elsewhere else []
        name = "name it" if len(settings) == 1 else "name them"
        raise UserError(f"{origin.path}: {'; '.join(said)}; {name}: {'; '.join(settings)}.")


def data_of(origin: Origin, metadata: dict[str, Any], cfg: SourceConfig, model: LanguageModel) -> DataConfig:
    """The text, and how it becomes contexts. Raises UserError where only the network would have it.

    Of a text of the user's own that the metadata does not name all is read, since nobody held a part of it out.
    """
    if origin.config is not None:
        return _merged(_found(origin.config.data, origin), cfg.data)
    said: dict[str, Any] = {}
    context = metadata.get("context_size")
    said["context_length"] = min(DataConfig().context_length, model.n_ctx) if context is None else context
    prepend = metadata.get("prepend_bos")
    if prepend is not None:
        said["bos"] = "context" if prepend else "none"
    elif model.bos_token_id is None:
        said["bos"] = "none"
    trained = _known_text(origin, metadata.get("dataset_path"))
    if cfg.data is not None and _set(cfg.data, "source"):
        source = cfg.data.source
        if _all_local(source) and not any(_is_of(source, text) for text in (trained, metadata.get("dataset_path"))):
            said["heldout"] = 1.0
    else:
        if trained is None and metadata.get("dataset_path") is not None:
            must_be_named(origin, metadata, cfg, needs_model=False, needs_site=False)
        source = DataConfig().source if trained is None else trained
    return _merged(_section(DataConfig, {**said, "source": source}, origin, "data"), cfg.data)


def data_notes(origin: Origin, metadata: dict[str, Any], cfg: SourceConfig) -> tuple[str, ...]:
    """What the user is to know of how the text was chosen."""
    if origin.config is not None or _set(cfg.data, "source") or metadata.get("dataset_path") is not None:
        return ()
    return (
        f"{origin.path}: its metadata names no text, so {DataConfig().source} is read; data.source= names another.",
    )


def rows_of(origin: Origin, metadata: dict[str, Any], cfg: SourceConfig) -> RowsConfig:
    """Which tokens count."""
    if origin.config is not None:
        return _merged(origin.config.rows, cfg.rows)
    said = {key: metadata[key] for key in RowsConfig.model_fields if metadata.get(key) is not None}
    return _merged(_section(RowsConfig, said, origin, "rows"), cfg.rows)


def same_text(data: DataConfig) -> str:
    """Equal for settings that give the same held-out contexts (its order knows no blocks)."""
    sources = [data.source] if isinstance(data.source, str) else data.source
    return data.model_copy(update={"source": sources}).model_dump_json(exclude={"shuffle_characters"})


def _merged(base: S, given: S | None) -> S:
    """`base` with the settings that the user has set."""
    if given is None:
        return base
    return base.model_copy(update={key: getattr(given, key) for key in given.model_fields_set})


def _set(section: Section | None, key: str) -> bool:
    """Whether the user has set it."""
    return section is not None and key in section.model_fields_set


def _known_model(origin: Origin, metadata: dict[str, Any]) -> str | None:
    """The metadata's model if it is on this machine."""
    name = metadata.get("model_name")
    if not isinstance(name, str) or not name:
        return None
    return name if name == "bundled" else _local(name, origin, "config.json")


def _places(source: str | list[str]) -> list[Path]:
    return [Path(name).expanduser().resolve() for name in ([source] if isinstance(source, str) else source)]


def _is_of(source: str | list[str], said: Any) -> bool:
    """Whether that is the text that the metadata names, wherever it is."""
    names = said if isinstance(said, list) else [said]
    return all(isinstance(name, str) for name in names) and _places(source) == _places(names)


def _all_local(source: str | list[str]) -> bool:
    names = [source] if isinstance(source, str) else source
    return all(name not in NAMES and Path(name).expanduser().exists() for name in names)


def _known_text(origin: Origin, source: Any) -> str | list[str] | None:
    """The metadata's text if it may be read unasked: all of it Python's own sources, or files in the SAE's own folder.

    Other files are not: an SAE comes from elsewhere, what its metadata names could be anything of the user's, and the
    report shows it to whomever it is sent to.
    """
    if source is None:
        return None
    names = source if isinstance(source, list) else [source]
    found = [name if name in NAMES else _inside(name, origin.path) for name in names if isinstance(name, str)]
    if not names or len(found) < len(names) or None in found:
        return None
    texts = [name for name in found if name is not None]
    return texts if isinstance(source, list) else texts[0]


def _inside(name: str, folder: Path) -> str | None:
    """The path, from `folder` if it is relative, if it is there and leads to something in `folder`."""
    path = (folder / name).resolve()
    return str(path) if path.is_relative_to(folder.resolve()) and path.exists() else None


def _found(data: DataConfig, origin: Origin) -> DataConfig:
    """A run's text, whose relative paths were those of another working directory perhaps."""
    names = [data.source] if isinstance(data.source, str) else data.source
    names = [name if name in NAMES else _local(name, origin) or name for name in names]
    return data.model_copy(update={"source": names[0] if isinstance(data.source, str) else names})


def _local(name: str, origin: Origin, file: str = "") -> str | None:
    """The path if it is there (with `file` in it), else the same path from a folder above the SAE, as where a run's
    paths are relative to the folder that `runs` is in; None if there is none."""
    path = Path(name).expanduser()
    if (path / file).exists():
        return name
    above = () if path.is_absolute() else origin.path.resolve().parents
    return next((str(parent / path) for parent in above if (parent / path / file).exists()), None)


def _section(kind: type[S], values: dict[str, Any], origin: Origin, name: str) -> S:
    try:
        return kind(**values)
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        raise UserError(
            f"{origin.path}: its metadata gives {str(values.get(str(key)))[:50]!r} for {name}.{key}; "
            f"set {name}.{key} yourself."
        ) from None
