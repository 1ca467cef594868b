"""A dictionary from a SAELens folder, whoever wrote it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.files import SafetensorsFile, read_json, read_tensors, shown
from sae_tools.dictionaries.formats.parts import KINDS, Parts, rescaled, unit_scaling
from sae_tools.dictionaries.formats.saelens.config import CFG, SCALER, WEIGHTS, SAELensConfig, parse
from sae_tools.dictionaries.formats.units import finished
from sae_tools.errors import UserError


def load_saelens(
    path: str | Path,
    *,
    fold_decoder_norm: bool | None = None,
    norm_scaling_factor: float | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) from a SAELens folder: inference or training, of any version, of the architectures in
    `support.py`.

    The dictionary acts on the site's activations (or on the space's, where metadata.coordinates is "space"), float32,
    on the CPU, and does what SAELens would do with the folder. `rescale_acts_by_decoder_norm`, factors of finetuning
    and the scale of `expected_average_only_in` are folded into the weights. metadata is cfg.json's own, with
    `architecture`, `d_in`, `d_out`, `d_sae`, `format` and `activation_unit` beside it. A `jumprelu` folder that we
    wrote for a BatchTopK or Matryoshka dictionary comes back as one.

    fold_decoder_norm: rescale the features, thresholds with them, to decoder rows of norm 1, where that leaves the
        function unchanged (not where features compete by pre-activations). None: do it unless we wrote the folder
        ourselves; SAELens leaves such decoders as training left them, so their activations have no unit.
    norm_scaling_factor: by what activations were multiplied in training with `expected_average_only_in`; None: what
        a training checkpoint has beside it.
    overrides: settings that replace those of cfg.json.

    Raises UserError, one sentence, for whatever is missing, damaged, too large for its file or not supported. Nothing
    is allocated that the file does not hold.
    """
    path = Path(path)
    cfg = parse({**read_json(path / CFG), **(overrides or {})}, path / CFG)
    tensors = _read_weights(path / WEIGHTS, cfg)
    trained = cfg.metadata.get("training_architecture")
    ours = trained if isinstance(trained, dict) else None
    parts = _parts(cfg, tensors, ours)
    if cfg.by_decoder_norm and cfg.kind in ("topk", "batchtopk", "matryoshka"):  # the others have no such setting
        parts = rescaled(parts, unit_scaling(parts.W_dec))
    if cfg.scaled_inputs:
        factor = _factor(path, norm_scaling_factor)
        b_dec, W_dec = parts.b_dec / factor, parts.W_dec / factor
        parts = replace(parts, encoder=parts.encoder * factor, W_dec=W_dec, b_dec=b_dec)
    fold = ours is None if fold_decoder_norm is None else fold_decoder_norm
    metadata = {**cfg.metadata, "format": "saelens", "architecture": cfg.architecture}
    return finished(parts, metadata, path / WEIGHTS, unit_norms=fold)


def _parts(cfg: SAELensConfig, tensors: dict[str, Tensor], ours: dict[str, Any] | None) -> Parts:
    """The weights as they are, but for finetuning."""
    encoder, b_enc = tensors["W_enc"].T, tensors["b_gate" if cfg.kind == "gated" else "b_enc"]
    W_dec, W_skip = tensors["W_dec"], tensors.get("W_skip")
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        if name in tensors and cfg.finetuned:
            W_dec = W_dec * tensors[name].unsqueeze(1)
    kind, settings, features = cfg.kind, dict(KINDS[cfg.kind].free), {}
    if kind == "topk":
        settings = {"k": cfg.k}
    elif kind in ("batchtopk", "matryoshka"):
        settings = {"k": cfg.k, "threshold": tensors["topk_threshold"].item()}
        settings |= {"widths": cfg.widths} if kind == "matryoshka" else {}
    elif kind == "gated":
        features = {name: tensors[name] for name in ("r_mag", "b_mag")}
    elif kind == "jumprelu":
        threshold = tensors["threshold"] if "threshold" in tensors else tensors["log_threshold"].exp()
        batch = _batch(threshold, ours)
        kind, settings = batch or (kind, settings)
        features = {} if batch else {"threshold": threshold}
    return Parts(
        kind,
        encoder,
        b_enc,
        W_dec,
        tensors["b_dec"],
        features,
        settings,
        W_skip=None if W_skip is None else W_skip.T,
        subtract_b_dec=cfg.subtract_b_dec,
    )


def _batch(threshold: Tensor, ours: dict[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """What a file of ours says of how it was trained, where that is as BatchTopK and can be true."""
    kind, k = (ours or {}).get("kind"), (ours or {}).get("k")
    d_sae = len(threshold)
    if kind not in ("batchtopk", "matryoshka") or type(k) is not int or not 1 <= k <= d_sae:
        return None
    if not bool((threshold == threshold[0]).all()):
        return None
    settings: dict[str, Any] = {"k": k, "threshold": threshold[0].item()}
    if kind == "matryoshka":
        widths = (ours or {}).get("widths")
        if not isinstance(widths, list) or not all(type(w) is int and 1 <= w <= d_sae for w in widths):
            return None
        if not widths or widths[-1] != d_sae or sorted(set(widths)) != widths:
            return None
        settings["widths"] = widths
    return str(kind), settings


def _read_weights(path: Path, cfg: SAELensConfig) -> dict[str, Tensor]:
    d_in, d_sae, d_out = cfg.d_in, cfg.d_sae, cfg.d_out
    shapes = {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out]}
    if cfg.kind == "gated":
        del shapes["b_enc"]
        shapes |= {name: [d_sae] for name in ("b_gate", "b_mag", "r_mag")}
    elif cfg.kind in ("batchtopk", "matryoshka"):
        shapes["topk_threshold"] = []
    if cfg.skip:
        shapes["W_skip"] = [d_out, d_in]
    file = SafetensorsFile(path)
    declared = file.declared()
    if cfg.kind == "jumprelu":  # its logarithm in checkpoints of older versions
        shapes["log_threshold" if "log_threshold" in declared else "threshold"] = [d_sae]
    factors = {name: [d_sae] for name in ("scaling_factor", "finetuning_scaling_factor")}
    tensors = read_tensors(file, shapes, f"{CFG} says", optional=factors)
    for name in factors:
        if name in tensors and not cfg.finetuned and not bool((tensors[name] - 1).abs().max() < 1e-5):
            raise UserError(f"{path}: {name} is there, but {CFG} does not say finetuning_scaling_factor = true.")
    return tensors


def _factor(path: Path, given: float | None) -> float:
    """What activations were multiplied by in training."""
    if given is None:
        if not (path / SCALER).is_file():
            raise UserError(
                f"{path / CFG}: normalize_activations = 'expected_average_only_in' needs the factor that activations "
                f"were multiplied by, and there is no {SCALER}; give norm_scaling_factor."
            )
        given = read_json(path / SCALER).get("scaling_factor")
    if not isinstance(given, int | float) or isinstance(given, bool) or not 1e-30 < abs(given) < 1e30:
        raise UserError(f"{path / SCALER}: scaling_factor must be a positive number, and is {shown(given)}.")
    if given < 0 or not math.isfinite(given):
        raise UserError(f"{path / SCALER}: scaling_factor must be a positive number, and is {shown(given)}.")
    return float(torch.tensor(given, dtype=torch.float64))
