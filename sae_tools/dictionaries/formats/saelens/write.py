"""SAELens folders, written so that `sae_lens.SAE.load_from_disk` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.folding import fold, without_subtraction
from sae_tools.dictionaries.formats.parts import Parts, take_apart
from sae_tools.dictionaries.formats.saelens.config import CFG, WEIGHTS
from sae_tools.dictionaries.formats.support import MATRIX, OURS, Architecture, architecture_of, name_in
from sae_tools.dictionaries.formats.units import as_written
from sae_tools.runs.atomic import replacing, write_text
from sae_tools.spaces.space import Space

SAE_LENS_VERSION = "6.54.12"
"""The version whose format is written; without one a folder is taken for an old one and converted."""


def export_saelens(
    dictionary: Dictionary, space: Space, path: str | Path, metadata: dict[str, Any], *, writes: Space | None = None
) -> None:
    """Write the folder `path` (made if it is missing; existing files are replaced). UserError where no space is left.

    What is written is the dictionary folded into the coordinates of its site (`folding.fold`).
    metadata: JSON-able, goes into cfg.json's `metadata` as it is; give `model_name`, `context_size` and `prepend_bos`,
    which SAELens's activation store asks for, and whatever else is known (`tokens`, …).
    writes: the space that a two-site dictionary reconstructs.

    Spaces with ln `mean` are folded with the σ̄ of positions >= 1. Spaces with ln `token` are another map at every
    token and are not folded: the weights stay in the space's coordinates, `metadata.coordinates` says "space", and
    `hook_name` is null, so that nobody applies them to the site's activations by mistake.

    Where SAELens has no such class (`support.OURS`: a TopK transcoder) the folder is of the same make, under an
    architecture that only we read.
    """
    foldable = space.foldable and (writes is None or writes.foldable)
    parts = fold(dictionary, space, writes) if foldable else fold(dictionary, None)
    architecture = Architecture(parts.kind, writes is not None or _transcoder(parts), parts.W_skip is not None)
    known = {
        "hook_name": space.site.hook_name if foldable else None,
        "hook_head_index": None,
        "coordinates": "site" if foldable else "space",
        "activation_unit": f"the feature's own space (metadata.{'space_out' if writes else 'space'}), decoder row of "
        "norm 1 there",
        "site": space.site.name,
        "site_hook_name": space.site.hook_name,
        "space": space.describe(),
        "training_architecture": describe(dictionary),
    }
    if writes is not None:
        known |= {
            "hook_name_out": writes.site.hook_name if foldable else None,
            "site_out": writes.site.name,
            "site_out_hook_name": writes.site.hook_name,
            "space_out": writes.describe(),
        }
    if not foldable:
        known["note"] = (
            "Weights act on the space's coordinates ((x M) / sigma_t - centre) / scale, with the final norm's scale "
            "sigma_t at each token, which no fixed weights on the site's activations can express."
        )
    _write(parts, architecture, Path(path), {**metadata, **known})


def write_saelens(dictionary: Dictionary, path: str | Path, metadata: dict[str, Any] | None = None) -> list[str]:
    """Write the dictionary, in the coordinates that it is in, as a SAELens folder, and return sentences on what SAELens
    will not find in it. Raises UserError for an architecture that SAELens does not have."""
    metadata = dictionary.metadata if metadata is None else metadata
    architecture = architecture_of(dictionary, metadata)
    name = name_in(architecture, "saelens")
    parts, metadata = as_written(dictionary, metadata)
    trained, said = describe(dictionary), metadata.get("training_architecture")
    if isinstance(said, dict) and said.get("kind") == trained["kind"]:
        trained = {**trained, **said, **{key: trained[key] for key in ("k", "widths") if key in trained}}
    _write(parts, architecture, Path(path), {"hook_head_index": None, **metadata, "training_architecture": trained})
    if name == "jumprelu" or name.startswith("jumprelu_"):
        if architecture.kind in ("batchtopk", "matryoshka"):
            return [f"SAELens has {architecture.label} dictionaries as JumpReLU, with the threshold for every feature."]
    return []


def describe(dictionary: Dictionary) -> dict[str, Any]:
    """How it is trained: the kind of architecture and its settings."""
    parts = take_apart(dictionary)
    settings = {key: value for key, value in parts.settings.items() if key not in ("threshold", "unit_decoder")}
    return {"kind": parts.kind, **settings}


def _transcoder(parts: Parts) -> bool:
    return parts.d_in != parts.d_out or parts.W_skip is not None


def _name(architecture: Architecture) -> str:
    names = MATRIX.get((architecture, "saelens"))
    return names.write if names is not None else next(name for name, ours in OURS.items() if ours == architecture)


def _write(parts: Parts, architecture: Architecture, path: Path, metadata: dict[str, Any]) -> None:
    """metadata: cfg.json's, but for what SAELens's version and the architecture say themselves."""
    name = _name(architecture)
    parts = without_subtraction(parts) if architecture.transcoder else parts
    tensors = _tensors(parts)
    details: dict[str, Any] = {}
    if parts.kind == "topk":
        details = {"k": parts.settings["k"], "rescale_acts_by_decoder_norm": False}
    if architecture.transcoder:
        details["d_out"] = parts.d_out
    said = {k: v for k, v in metadata.items() if k not in ("architecture", "format", "d_in", "d_sae", "d_out")}
    cfg = {
        "architecture": name,
        **details,
        "d_in": parts.d_in,
        "d_sae": parts.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": parts.subtract_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**said, "sae_lens_version": SAE_LENS_VERSION},
    }
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_text(path / CFG, json.dumps(cfg, indent=2, allow_nan=False) + "\n")


def _tensors(parts: Parts) -> dict[str, Tensor]:
    """In SAELens's names and layouts."""
    tensors = {"b_enc": parts.b_enc, "W_enc": parts.encoder.T.contiguous(), "W_dec": parts.W_dec, "b_dec": parts.b_dec}
    if parts.kind == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    if "threshold" in parts.settings:
        tensors["threshold"] = parts.b_enc.new_full((parts.d_sae,), parts.settings["threshold"])
    if parts.W_skip is not None:
        tensors["W_skip"] = parts.W_skip.T.contiguous()
    return tensors | parts.features
