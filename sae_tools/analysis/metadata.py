"""The model, the text and the rows that an SAE belongs to: what its run or its metadata says, and the user's settings.

The user's settings win one by one: `data.source=…` alone leaves the context length that the metadata gives. Nothing is
fetched because metadata names it: what is not on this machine must be named by the user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sae_tools.analysis.origins import Origin
from sae_tools.config import DataConfig, ModelConfig, RowsConfig, Section
from sae_tools.config_report import ReportConfig
from sae_tools.data.python_sources import NAMES
from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel

S = TypeVar("S", bound=Section)


def model_of(origin: Origin, metadata: dict[str, Any], cfg: ReportConfig) -> ModelConfig:
    """Which model is to be loaded. Raises UserError where nobody names one that can be had without being asked for."""
    if origin.config is not None:
        own = origin.config.model
        local = _local(own.name, origin, "config.json")
        return _merged(own.model_copy(update={"name": local or own.name}), cfg.model)
    if cfg.model is not None and "name" in cfg.model.model_fields_set:
        return cfg.model
    name = metadata.get("model_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{origin.path}: its metadata names no model; name it: model.name=FOLDER.")
    local = name if name == "bundled" else _local(name, origin, "config.json")
    if local is None:
        raise UserError(
            f"{origin.path}: its model {name!r} is no folder on this machine, and is not fetched unasked; name it: "
            f"model.name=FOLDER, or its name on the hub."
        )
    return _merged(ModelConfig(name=local), cfg.model)


def data_of(origin: Origin, metadata: dict[str, Any], cfg: ReportConfig, model: LanguageModel) -> DataConfig:
    """The text, and how it becomes contexts. Raises UserError where only the network would have it."""
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
    if cfg.data is not None and "source" in cfg.data.model_fields_set:
        source = cfg.data.source
    else:
        source = _known_text(origin, metadata.get("dataset_path"))
    return _merged(_section(DataConfig, {**said, "source": source}, origin, "data"), cfg.data)


def rows_of(origin: Origin, metadata: dict[str, Any], cfg: ReportConfig) -> RowsConfig:
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


def _known_text(origin: Origin, source: Any) -> str | list[str]:
    """The metadata's text if it is on this machine; ours is the default where the metadata says nothing."""
    if source is None:
        return DataConfig().source
    names = source if isinstance(source, list) else [source]
    found = [name if name in NAMES else _local(name, origin) for name in names if isinstance(name, str)]
    if not names or len(found) < len(names) or None in found:
        hub = str(source).removeprefix("hub:")
        raise UserError(
            f"{origin.path}: its text {str(source)[:100]!r} is not on this machine, and is not fetched unasked; name a "
            f"text: data.source=python-stdlib, a file or folder, or data.source=hub:{hub[:100]}."
        )
    texts = [name for name in found if name is not None]
    return texts if isinstance(source, list) else texts[0]


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
