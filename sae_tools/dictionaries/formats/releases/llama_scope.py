"""Llama Scope (He et al. 2024, arXiv 2410.20526): JumpReLU SAEs of Llama 3.1 8B, as OpenMOSS's library saves them.

encoder.weight [d_sae, d_in], encoder.bias, decoder.weight [d_in, d_sae], decoder.bias; b_dec is not subtracted.
Activations were multiplied by s = √d_in / their mean norm over the dataset, which is folded into the weights here, so
that the dictionary reads the model's own: W_enc s, W_dec / s, b_dec / s.

The first release has `hyperparams.json` and `checkpoints/final.safetensors` and one threshold for all features, in
the unit of the model's activations: times s it is what pre-activations are compared with, as SAELens has it. The later
one (R1 Distill) has `config.json`, `sae_weights.safetensors`, and a threshold's logarithm for each feature, in the unit
of pre-activations.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_tools.dictionaries.formats.files import Declared, SafetensorsFile, flag, positive, read_json, section, shown
from sae_tools.dictionaries.formats.parts import Parts
from sae_tools.dictionaries.formats.releases.source import (
    SLIMPAJAMA,
    Found,
    Layout,
    Source,
    named_tensors,
    parts_of,
    text,
)
from sae_tools.errors import UserError

HYPERPARAMS, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
MODEL = "meta-llama/Llama-3.1-8B"
MODELS = {"Llama3_1-8B-Base": MODEL, "Llama-Scope-R1-Distill": MODEL}
"""By the repository's name. For the second, which was made for DeepSeek's distilled descendant of it, SAELens names the
base model too."""
NORM = "dataset_average_activation_norm"
NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
LAYOUT = Layout(*NAMES, encoder_by_feature=True, decoder_by_feature=False)


def read(source: Source) -> Found:
    where, path = source.path / HYPERPARAMS, source.path / FINAL
    cfg = _checked(read_json(where), where)
    d_in = positive(cfg, "d_model", where)
    own = math.sqrt(d_in) / _number(section(cfg, NORM, where).get("in"), f"{NORM}.in", where)
    threshold = _number(cfg.get("jump_relu_threshold"), "jump_relu_threshold", where)
    tensors = named_tensors(SafetensorsFile(path), LAYOUT)
    _fits(tensors["encoder"].shape, d_in, cfg.get("d_sae"), where)
    tensors["threshold"] = torch.full_like(tensors["b_enc"], threshold * own)
    parts = _unscaled(parts_of("jumprelu", tensors), source.norm_scaling_factor or own)
    return Found(parts, about(source.name, cfg), path)


def read_r1_distill(source: Source) -> Found:
    where, path = source.path / CONFIG, source.path / WEIGHTS
    cfg = _checked(read_json(where), where)
    d_in = positive(cfg, "d_model", where)
    file = SafetensorsFile(path)
    norms = _Norms(file)
    hook = f"{NORM}.{cfg.get('hook_point_in')}"
    tensors = named_tensors(norms.others, Layout(*NAMES, True, False, "log_jumprelu_threshold"))
    expansion = cfg.get("expansion_factor")
    d_sae = d_in * expansion if isinstance(expansion, int | float) and abs(expansion) < 1e6 else expansion
    _fits(tensors["encoder"].shape, d_in, d_sae, where)
    tensors["threshold"] = tensors["threshold"].exp()
    factor = source.norm_scaling_factor
    if factor is None:
        if hook not in norms.names:
            raise UserError(f"{path}: the mean norm of activations, tensor '{NORM}.' and the hook's name, is missing.")
        factor = math.sqrt(d_in) / _number(norms.read(hook), f"{NORM} of the hook", path)
    return Found(_unscaled(parts_of("jumprelu", tensors), factor), about(source.name, cfg), path)


def about(name: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """What configuration and names say."""
    said: dict[str, Any] = {"architecture": "jumprelu"}
    model = next((model for key, model in MODELS.items() if key in name), None)
    if model is not None:
        said |= {"model_name": model, **SLIMPAJAMA}
    hook = text(cfg.get("hook_point_in"))
    return said if hook is None else {**said, "hook_name": hook}


def _checked(cfg: dict[str, Any], where: Path) -> dict[str, Any]:
    """The configuration, if what it says is what is read here."""
    allowed = {"act_fn": (None, "jumprelu"), "norm_activation": (None, "dataset-wise"), "sae_type": (None, "sae")}
    for key, values in allowed.items():
        if cfg.get(key) not in values:
            raise UserError(f"{where}: {key} = {shown(cfg[key])} is not supported; expected {values[-1]!r}.")
    for key in ("apply_decoder_bias_to_pre_encoder", "use_glu_encoder"):
        if flag(cfg, key, where):
            raise UserError(f"{where}: {key} = true is not supported.")
    out = cfg.get("hook_point_out", cfg.get("hook_point_in"))
    if out != cfg.get("hook_point_in"):
        raise UserError(
            f"{where}: it reads {shown(cfg.get('hook_point_in'))} and writes {shown(out)}; of this layout only "
            "dictionaries of one site are read."
        )
    return cfg


def _fits(shape: torch.Size, d_in: int, d_sae: object, where: Path) -> None:
    if [d_sae, d_in] != list(shape):
        raise UserError(
            f"{where}: it says {shown(d_sae)} features of width {shown(d_in)}, and the encoder has {list(shape)}."
        )


def _unscaled(parts: Parts, factor: float) -> Parts:
    """Of the activations that were multiplied by `factor`, for those that are not. Thresholds stay as they are."""
    W_dec, b_dec = parts.W_dec / factor, parts.b_dec / factor
    return replace(parts, encoder=parts.encoder * factor, W_dec=W_dec, b_dec=b_dec)


def _number(value: object, name: str, where: Path) -> float:
    if type(value) not in (int, float) or not 1e-6 < value < 1e9:  # type: ignore[operator]
        raise UserError(f"{where}: {name} must be a positive number, and is {shown(value)}.")
    return float(value)  # type: ignore[arg-type]


class _Norms:
    """The file's mean norms, which are scalars by the hooks' names, and the file without them."""

    def __init__(self, file: SafetensorsFile):
        self._file = file
        self.names = {name for name in file.declared() if name.startswith(f"{NORM}.")}
        self.others = _Without(file, self.names)

    def read(self, name: str) -> float | None:
        found = self._file.declared()[name]
        if found.shape or found.dtype is None or not found.dtype.is_floating_point:
            return None
        return self._file.read(name).item()  # type: ignore[return-value]


class _Without:
    """A file of tensors without some of them."""

    def __init__(self, file: SafetensorsFile, left_out: set[str]):
        self.path, self.read, self._file, self._left_out = file.path, file.read, file, left_out

    def declared(self) -> dict[str, Declared]:
        return {name: found for name, found in self._file.declared().items() if name not in self._left_out}
