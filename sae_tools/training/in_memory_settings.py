"""What `train` is told, as the settings that a job would have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from sae_tools.config import ArchitectureConfig, DictionaryConfig
from sae_tools.config_architectures import Architecture
from sae_tools.dictionaries import Dictionary
from sae_tools.dictionaries.formats.parts import KIND_OF, KINDS
from sae_tools.errors import UserError

READ, WRITTEN = "rows", "targets"
"""Names of the sites that the rows are taken to be of."""
Kind = Literal["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"]


def as_in_a_job(
    what: Kind | Architecture | DictionaryConfig | Dictionary,
    settings: dict[str, Any],
    d_sae: int | None,
    b_dec_init: Any,
    encoder_init: Any,
    skip: bool,
    match_l0: float | None,
) -> DictionaryConfig:
    """As a job would have them, at a site of the name `rows`."""
    if isinstance(what, DictionaryConfig | Architecture) and settings:
        raise UserError(f"{next(iter(settings))} is a setting of the configuration that is given: set it there.")
    if isinstance(what, DictionaryConfig):
        if d_sae is not None or skip or match_l0 is not None:
            raise UserError("d_sae, skip and match_l0 are settings of the configuration that is given: set them there.")
        if what.init_from is not None:
            raise UserError("init_from is for jobs: give train the dictionary itself (load_dictionary).")
        cfg = what
    else:
        if isinstance(what, Dictionary):
            if d_sae not in (None, what.d_sae) or skip:
                raise UserError("d_sae and skip are the given dictionary's own, and cannot be chosen.")
            d_sae = what.d_sae
            architecture = validated(ArchitectureConfig, **{**_own_settings(what), **settings})
        elif isinstance(what, str):
            architecture = validated(ArchitectureConfig, kind=what, **settings)
        elif isinstance(what, Architecture):
            architecture = what
        else:
            raise UserError(
                f"train takes an architecture's name, a configuration or a Dictionary, and no {type(what).__name__}."
            )
        cfg = validated(
            DictionaryConfig,
            site=READ,
            architecture=architecture.model_dump(),
            b_dec_init=b_dec_init,
            encoder_init=encoder_init,
            match_l0=match_l0,
            **({} if d_sae is None else {"d_sae": d_sae}),
            **({"writes": {"site": WRITTEN}, "skip": True} if skip else {}),
        )
    if getattr(cfg.architecture, "resample_at", None):
        raise UserError("resample_at is for jobs, which can read their text again; train does not resample.")
    return cfg


def _own_settings(dictionary: Dictionary) -> dict[str, Any]:
    """Of its architecture, those that it knows itself."""
    kind = KIND_OF[type(dictionary)]
    known = type(validated(ArchitectureConfig, kind=kind)).model_fields
    return {"kind": kind} | {name: getattr(dictionary, name) for name in KINDS[kind].settings if name in known}


def validated(form: Any, /, **values: Any) -> Any:
    """UserError in a sentence for what pydantic refuses."""
    try:
        return TypeAdapter(form).validate_python(values)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors()[0])
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            *of, name = first["loc"]
            place, reason = str(name), f"is no setting of {'.'.join(map(str, of)) or 'it'}"
        elif first["type"] == "union_tag_invalid":
            reason = f"there is no architecture {first['ctx']['tag']!r}; expected {first['ctx']['expected_tags']}"
        raise UserError(f"{place}{place and ': '}{reason.rstrip('.')}.") from None
