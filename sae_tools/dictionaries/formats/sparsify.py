"""sparsify's folders: `cfg.json` and `sae.safetensors`; read and written without the library.

The k largest of ReLU(x W + b), decoded: x - b_dec is encoded unless cfg.json says `transcode`, and x W_skip is added
where it says `skip_connection`: without `transcode` that is an autoencoder, which writes where it reads. `multi_topk`
is a part of training's loss; what `encode` gives does not depend on it (the library's `forward` returns a
reconstruction of 4 k features then, which is not what is read here).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.files import (
    SafetensorsFile,
    flag,
    one_line,
    positive,
    read_json,
    read_tensors,
    section,
    shown,
)
from sae_tools.dictionaries.formats.folding import with_subtraction, without_subtraction
from sae_tools.dictionaries.formats.hooks import hook_of
from sae_tools.dictionaries.formats.parts import Parts
from sae_tools.dictionaries.formats.support import architecture_of, name_in
from sae_tools.dictionaries.formats.units import as_written, finished
from sae_tools.errors import UserError
from sae_tools.runs.atomic import replacing, write_text

CFG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
"""The last is the training run's, in the folder above the hook point's."""
SETTINGS = ("activation", "expansion_factor", "normalize_decoder", "num_latents", "multi_topk")


def read_sparsify(path: str | Path) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) from a hook point's folder. Features compete by their pre-activations, so decoder norms
    are left as they are.

    metadata: `model_name`, `dataset_path` and `context_size` where the run's config.json is there, `hook_name` (for a
    transcoder `hook_name_out`) where the folder's name tells it, `sparsify` (settings that decide nothing here),
    `format`, `architecture`, `d_in`, `d_out`, `d_sae`, `activation_unit`; and what was written with one of ours.

    Raises UserError, one sentence, for whatever is missing, damaged or not supported (groupmax, signed).
    """
    path = Path(path)
    where = path / CFG
    cfg = read_json(where)
    activation = cfg.get("activation", "topk")
    if activation != "topk":
        raise UserError(f"{where}: activation {shown(activation)} is not supported; expected 'topk'.")
    if flag(cfg, "signed", where):
        raise UserError(f"{where}: signed activations are not supported.")
    d_in, k = positive(cfg, "d_in", where), positive(cfg, "k", where)
    latents = cfg.get("num_latents")
    d_sae = positive(cfg, "num_latents", where) if latents else d_in * positive(cfg, "expansion_factor", where)
    if k > d_sae:
        raise UserError(f"{where}: k = {shown(k)} is larger than the number of latents, {shown(d_sae)}.")
    transcode, skip = flag(cfg, "transcode", where), flag(cfg, "skip_connection", where)
    flag(cfg, "multi_topk", where)
    shapes = {"encoder.weight": [d_sae, d_in], "encoder.bias": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}
    if skip:
        shapes["W_skip"] = [d_in, d_in]
    tensors = read_tensors(SafetensorsFile(path / WEIGHTS), shapes, f"{CFG} says")
    parts = Parts(
        "topk",
        tensors["encoder.weight"],
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        settings={"k": k},
        W_skip=tensors["W_skip"].T if skip else None,
        subtract_b_dec=not transcode,
    )
    name = ("skip_" if skip else "") + ("transcoder" if transcode else "sae")
    metadata = {**_metadata(path, cfg, transcode), "format": "sparsify", "architecture": f"topk_{name}"}
    return finished(parts, metadata, path / WEIGHTS, unit_norms=False)


def _metadata(path: Path, cfg: dict[str, Any], transcode: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    above = path.absolute().parent / RUN
    if above.is_file():
        run = read_json(above)
        for key, ours in (("model", "model_name"), ("dataset", "dataset_path"), ("ctx_len", "context_size")):
            if isinstance(run.get(key), str | int):
                found[ours] = run[key]
    hook = hook_of(path.absolute().name)
    if hook is not None:
        found["hook_name_out" if transcode else "hook_name"] = hook
    found["sparsify"] = {key: cfg[key] for key in SETTINGS if key in cfg}
    return {**found, **section(cfg, "metadata", path / CFG)}


def write_sparsify(dictionary: Dictionary, path: str | Path, metadata: dict[str, Any] | None = None) -> list[str]:
    """Write `path`/cfg.json and `path`/sae.safetensors, from which `SparseCoder.load_from_disk` makes the same
    dictionary, and return sentences on what it will not find there. Raises UserError for what sparsify has no class
    for, and for one whose output is not as wide as its input."""
    path = Path(path)
    metadata = dictionary.metadata if metadata is None else metadata
    architecture = architecture_of(dictionary, metadata)
    name_in(architecture, "sparsify")
    if dictionary.d_in != dictionary.d_out:
        raise UserError(
            f"sparsify has transcoders of equal widths only; this one reads {dictionary.d_in} and writes "
            f"{dictionary.d_out} numbers."
        )
    parts, metadata = as_written(dictionary, metadata)
    transcode = architecture.transcoder and not (architecture.skip and parts.subtract_b_dec)
    parts = without_subtraction(parts) if transcode else with_subtraction(parts)
    said = metadata.get("sparsify")
    cfg = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": False,
        "multi_topk": False,
        **{key: value for key, value in (said if isinstance(said, dict) else {}).items() if key in SETTINGS},
        "num_latents": parts.d_sae,
        "k": parts.settings["k"],
        "skip_connection": parts.W_skip is not None,
        "transcode": transcode,
        "d_in": parts.d_in,
    }
    left = {key: value for key, value in metadata.items() if key not in LEFT_OUT}
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / WEIGHTS) as temporary:
        save_file(_tensors(parts), temporary)
    write_text(path / CFG, json.dumps({**cfg, "metadata": left}, indent=2, allow_nan=False) + "\n")
    lost = one_line(", ".join(sorted(left)), 300)
    return [f"sparsify does not look at the metadata ({lost}), kept in {CFG}."] if left else []


LEFT_OUT = ("sparsify", "format", "architecture", "d_in", "d_sae", "d_out")


def _tensors(parts: Parts) -> dict[str, Tensor]:
    tensors = {"encoder.weight": parts.encoder, "encoder.bias": parts.b_enc, "W_dec": parts.W_dec, "b_dec": parts.b_dec}
    return tensors | ({} if parts.W_skip is None else {"W_skip": parts.W_skip.T.contiguous()})
