"""What a SAELens folder's cfg.json says, whichever version wrote it and whether for inference or as a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_tools.dictionaries.formats.files import flag, positive, section, shown
from sae_tools.dictionaries.formats.support import saelens_architectures
from sae_tools.errors import UserError

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER = "activation_scaler.json"
"""Beside a training checkpoint: by what activations were multiplied."""
METADATA = (
    "model_name",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "hook_head_index_out",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_version",
    "sae_lens_training_version",
)
"""What SAELens before version 6 kept beside the weights' own settings, without a `metadata`."""
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Names of before version 6."""


@dataclass(frozen=True)
class SAELensConfig:
    """The settings that decide what the weights mean."""

    architecture: str
    kind: str
    """Of `parts.KINDS`."""
    transcoder: bool
    skip: bool
    d_in: int
    d_sae: int
    d_out: int
    k: int | None
    """Of topk, batchtopk and matryoshka_batchtopk."""
    widths: list[int] | None
    """Of matryoshka_batchtopk."""
    subtract_b_dec: bool
    by_decoder_norm: bool
    """Pre-activations are multiplied by the norms of decoder rows, and activations divided by them."""
    scaled_inputs: bool
    """Activations were multiplied by one number in training, which the weights do not have in them."""
    finetuned: bool
    """A tensor of factors for activations, before they are decoded, may be there."""
    metadata: dict[str, Any]


def parse(cfg: dict[str, Any], path: Path) -> SAELensConfig:
    """Raises UserError, naming `path`, for what is of the wrong type or not supported."""
    metadata = section(cfg, "metadata", path)
    cfg, old = _renamed(cfg, metadata, path)
    architecture = cfg.get("architecture", "standard")
    known = saelens_architectures()
    if not isinstance(architecture, str) or architecture not in known:
        raise UserError(
            f"{path}: architecture {shown(architecture)} is not supported; expected one of {', '.join(known)}."
        )
    kind, transcoder, skip = known[architecture]
    d_in, d_sae = positive(cfg, "d_in", path), positive(cfg, "d_sae", path)
    d_out = positive(cfg, "d_out", path) if transcoder else d_in
    subtract = flag(cfg, "apply_b_dec_to_input", path, default=not transcoder)
    if transcoder and subtract:
        raise UserError(f"{path}: apply_b_dec_to_input = True is not supported for a {architecture}.")
    allowed = {
        "normalize_activations": (None, "none", False, True, "expected_average_only_in"),
        "reshape_activations": (None, "none", "hook_z"),
        "activation_fn": (None, "relu", *(("topk",) if kind == "topk" and old else ())),
        "activation_fn_str": (None, "relu"),
    }
    for key, values in allowed.items():
        if not any(type(cfg.get(key)) is type(value) and cfg.get(key) == value for value in values):
            raise UserError(f"{path}: {key} = {shown(cfg.get(key))} is not supported.")
    named = {key: cfg[key] for key in METADATA if key in cfg}
    return SAELensConfig(
        architecture=architecture,
        kind=kind,
        transcoder=transcoder,
        skip=skip,
        d_in=d_in,
        d_sae=d_sae,
        d_out=d_out,
        k=_k(cfg, architecture, d_sae, path),
        widths=_widths(cfg, d_sae, path) if kind == "matryoshka" else None,
        subtract_b_dec=subtract,
        by_decoder_norm=flag(cfg, "rescale_acts_by_decoder_norm", path),
        scaled_inputs=cfg.get("normalize_activations") in (True, "expected_average_only_in"),
        finetuned=flag(cfg, "finetuning_scaling_factor", path),
        metadata=named | metadata,
    )


def _renamed(cfg: dict[str, Any], metadata: dict[str, Any], path: Path) -> tuple[dict[str, Any], bool]:
    """(cfg in today's names, whether it is of before version 6), as SAELens converts old ones when it loads them."""
    version = cfg.get("sae_lens_version") or metadata.get("sae_lens_version")
    if version is not None and not (isinstance(version, str) and re.match(r"\d{1,9}(\D|$)", version)):
        raise UserError(f"{path}: sae_lens_version = {shown(version)} is no version.")
    if version is not None and int(re.split(r"\D", version, maxsplit=1)[0]) >= 6:
        return cfg, False
    cfg = {RENAMED.get(key, key): value for key, value in cfg.items()}
    details = cfg.get("activation_fn_kwargs")
    if cfg.get("activation_fn") == "topk" and isinstance(details, dict) and details.get("k") is not None:
        cfg.update(architecture="topk", k=details["k"])
    return cfg, True


def _k(cfg: dict[str, Any], architecture: str, d_sae: int, path: Path) -> int | None:
    """SAELens's BatchTopK allows a fraction, which only its training looks at; rounded here."""
    if not architecture.startswith(("topk", "batchtopk", "matryoshka")):
        return None
    k = cfg.get("k")
    batch = not architecture.startswith("topk")
    k = round(k) or 1 if batch and type(k) is float and 0 < k <= d_sae else positive(cfg, "k", path)
    if k > d_sae:
        raise UserError(f"{path}: k = {shown(k)} is larger than d_sae = {shown(d_sae)}.")
    return k


def _widths(cfg: dict[str, Any], d_sae: int, path: Path) -> list[int]:
    widths = cfg.get("matryoshka_widths")
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise UserError(f"{path}: 'matryoshka_widths' must be a list of integers, and is {shown(widths)}.")
    widths = widths if widths and widths[-1] == d_sae else [*widths, d_sae]
    if len(widths) > d_sae or any(a >= b for a, b in zip([0, *widths], widths, strict=False)):
        raise UserError(f"{path}: 'matryoshka_widths' must ascend to d_sae = {shown(d_sae)}.")
    return widths
