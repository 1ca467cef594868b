"""dictionary_learning's folders: `ae.pt`, a state dict, and `config.json`; read and written without the library.

AutoEncoder             ReLU of (x - bias) W + b, decoder rows rescaled to norm 1 when it is loaded
AutoEncoderNew          ReLU of x W + b
AutoEncoderTopK         the k largest after ReLU; its `threshold` is for other uses
BatchTopKSAE            above `threshold` (-1: not known yet, every positive one)
MatryoshkaBatchTopKSAE  the same, `group_sizes` features at a time
JumpReluAutoEncoder     above a threshold for each feature, of x W + b: b_dec is not subtracted
GatedAutoEncoder        as GatedDictionary
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.files import Declared, positive, read_integers, read_json, read_tensors, section
from sae_tools.dictionaries.formats.folding import with_subtraction, without_subtraction
from sae_tools.dictionaries.formats.hooks import hook_of
from sae_tools.dictionaries.formats.parts import KINDS, Parts
from sae_tools.dictionaries.formats.support import MATRIX, architecture_of, name_in
from sae_tools.dictionaries.formats.torch_file import TorchFile
from sae_tools.dictionaries.formats.units import as_written, finished
from sae_tools.errors import UserError
from sae_tools.runs.atomic import replacing, write_text

CONFIG, WEIGHTS = "config.json", "ae.pt"
LINEAR = {"encoder.weight": "FD", "encoder.bias": "F", "decoder.weight": "DF"}
PLAIN = {"W_enc": "DF", "b_enc": "F", "W_dec": "FD", "b_dec": "D"}
SHAPES = {
    "AutoEncoder": {"bias": "D", **LINEAR},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": "D"},
    "AutoEncoderTopK": {"b_dec": "D", **LINEAR},
    "BatchTopKSAE": {"b_dec": "D", **LINEAR, "threshold": ""},
    "MatryoshkaBatchTopKSAE": {**PLAIN, "threshold": ""},
    "JumpReluAutoEncoder": {**PLAIN, "threshold": "F"},
    "GatedAutoEncoder": {
        "decoder_bias": "D",
        "encoder.weight": "FD",
        "decoder.weight": "DF",
        "r_mag": "F",
        "gate_bias": "F",
        "mag_bias": "F",
    },
}
"""Floating-point tensors of each class, their dimensions: F features, D the width of activations."""
OURS = {
    "encoder.weight": "encoder",
    "encoder.bias": "b_enc",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
    "decoder.weight": "W_dec",
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "W_enc": "encoder",
}
"""Our names where they differ. `W_enc` and `decoder.weight` are transposed to ours."""
TRANSPOSED = ("W_enc", "decoder.weight")
LARGEST = 2**31 - 1


def read_dictionary_learning(
    path: str | Path, *, fold_decoder_norm: bool | None = None
) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata) from a folder with ae.pt (and config.json), or from a state dict's own path.

    The dictionary's `encode` and `forward` are what the library's are after `from_pretrained`, float32, on the CPU; but
    where features decide for themselves decoder rows are rescaled to norm 1, unless fold_decoder_norm is False (the
    library does that for AutoEncoder alone). config.json is looked for beside the state dict, and beside a folder
    `checkpoints` that it is in; without one the class is told by the tensors, where these tell it.

    metadata: `model_name`, `hook_name` where the configuration tells it, `context_size`, `trainer` (all that it says of
    training), `format`, `architecture` (the class), `d_in`, `d_out`, `d_sae`, `activation_unit`; and what was written
    with a dictionary of ours.

    Raises UserError, one sentence, for whatever is missing, damaged or not supported; nothing in the pickle is run.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    config_path = _config_beside(weights)
    config = {} if config_path is None else read_json(config_path)
    where = config_path or weights
    trainer, buffer = section(config, "trainer", where), section(config, "buffer", where)
    file = TorchFile(weights)
    name = _class_of(file.declared(), trainer, weights, config_path)
    d_in, d_sae = _sizes(file.declared(), name, weights)
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if key in trainer and positive(trainer, key, where) != size:
            raise UserError(
                f"{where}: {key} is {str(trainer[key])[:30]}, and the tensors of {weights.name} say {size}."
            )
    expected, integers = _expected(name, file.declared(), d_in, d_sae)
    k = _k(name, file, trainer, d_sae, where)
    widths = list(accumulate(read_integers(file, "group_sizes"))) if name == "MatryoshkaBatchTopKSAE" else None
    tensors = read_tensors(_Without(file, integers), expected, f"the encoder of {name} means")
    if widths is not None and (not widths or widths[-1] != d_sae or any(a >= b for a, b in pairwise([0, *widths]))):
        raise UserError(f"{weights}: group_sizes must be positive and add up to the {d_sae} features.")
    parts = _parts(name, tensors, k, widths)
    metadata = {**_metadata(config, trainer, buffer, where), "format": "dictionary-learning", "architecture": name}
    return finished(parts, metadata, weights, unit_norms=fold_decoder_norm is not False)


def _parts(name: str, tensors: dict[str, Tensor], k: int | None, widths: list[int] | None) -> Parts:
    ours = {OURS.get(key, key): tensor.T if key in TRANSPOSED else tensor for key, tensor in tensors.items()}
    kind = kind_of(name)
    settings: dict[str, Any] = dict(KINDS[kind].free)
    if k is not None:
        settings["k"] = k
    if kind in ("batchtopk", "matryoshka"):
        settings["threshold"] = max(0.0, ours["threshold"].item())  # after ReLU there is nothing below 0
    if widths is not None:
        settings["widths"] = widths
    features = {key: ours[key] for key in KINDS[kind].features}
    subtract = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    four = {key: ours[key] for key in ("encoder", "b_enc", "W_dec", "b_dec")}
    return Parts(kind, **four, features=features, settings=settings, subtract_b_dec=subtract)


def kind_of(name: str) -> str:
    """The kind of architecture that a class of theirs is."""
    found = (
        key.kind for (key, where), names in MATRIX.items() if where == "dictionary-learning" and name in names.read
    )
    return next(found)


class _Without:
    """A file of tensors without those that are looked at in another way."""

    def __init__(self, file: TorchFile, left_out: tuple[str, ...]):
        self.path, self.read, self._file, self._left_out = file.path, file.read, file, left_out

    def declared(self) -> dict[str, Declared]:
        return {name: found for name, found in self._file.declared().items() if name not in self._left_out}


def _config_beside(weights: Path) -> Path | None:
    folders = [weights.parent, *([weights.parent.parent] if weights.parent.name == "checkpoints" else [])]
    return next((folder / CONFIG for folder in folders if os.path.lexists(folder / CONFIG)), None)


def _class_of(declared: dict[str, Declared], trainer: dict[str, Any], weights: Path, config: Path | None) -> str:
    """The class by the configuration or, without one, by the names and shapes of the tensors."""
    if "dict_class" in trainer:
        name = trainer["dict_class"]
        if not isinstance(name, str) or name not in SHAPES:
            raise UserError(f"{config}: dict_class {str(name)[:50]!r} is not supported; expected {', '.join(SHAPES)}.")
        if name == "AutoEncoder" and set(declared) == set(SHAPES["AutoEncoderNew"]):
            return "AutoEncoderNew"  # the April trainer writes AutoEncoder whichever of the two it has trained
        return name
    names = set(declared)
    vector = "threshold" in declared and len(declared["threshold"].shape) == 1
    if {"encoder.weight", "b_dec", "threshold"} <= names:
        raise UserError(
            f"{weights}: AutoEncoderTopK and BatchTopKSAE have the same tensors; put the {CONFIG} beside it, which "
            "says dict_class."
        )
    for name, shapes in SHAPES.items():
        left = names - {"k", "group_sizes", "threshold"}
        if left == set(shapes) - {"threshold"} and vector == (shapes.get("threshold") == "F"):
            return name
    raise UserError(f"{weights}: its tensors are those of none of {', '.join(SHAPES)}.")


def _sizes(declared: dict[str, Declared], name: str, weights: Path) -> tuple[int, int]:
    """(width of activations, features) by the encoder."""
    key = "W_enc" if "W_enc" in SHAPES[name] else "encoder.weight"
    shape = declared[key].shape if key in declared else None
    if shape is None:
        raise UserError(f"{weights}: tensor '{key}' is missing for {name}.")
    if len(shape) != 2:
        raise UserError(f"{weights}: {key} has shape {str(shape)[:100]}, and must have two dimensions.")
    return (shape[0], shape[1]) if key == "W_enc" else (shape[1], shape[0])


def _expected(
    name: str, declared: dict[str, Declared], d_in: int, d_sae: int
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """(shapes of floating-point tensors by name, names of tensors of integers)."""
    size = {"F": d_sae, "D": d_in}
    shapes = {key: [size[dim] for dim in dims] for key, dims in SHAPES[name].items()}
    if name == "AutoEncoderTopK" and "threshold" in declared:  # not in older ones, and nothing that encode looks at
        shapes["threshold"] = []
    integers = {"MatryoshkaBatchTopKSAE": ("k", "group_sizes"), "BatchTopKSAE": ("k",), "AutoEncoderTopK": ("k",)}
    return shapes, integers.get(name, ())


def _k(name: str, file: TorchFile, trainer: dict[str, Any], d_sae: int, where: Path) -> int | None:
    if kind_of(name) not in ("topk", "batchtopk", "matryoshka"):
        return None
    stored = read_integers(file, "k", longest=1)
    said = positive(trainer, "k", where) if trainer.get("k") is not None else None
    if not stored and said is None:
        raise UserError(f"{file.path}: it has no tensor 'k', and no {CONFIG} says it.")
    k = stored[0] if stored else said
    if said is not None and k != said:
        raise UserError(f"{where}: k is {str(said)[:30]}, and {file.path.name} says {k}.")
    if not 1 <= (k or 0) <= d_sae:
        raise UserError(f"{file.path}: k = {k} is not between 1 and the {d_sae} features.")
    return k


def _metadata(config: dict[str, Any], trainer: dict[str, Any], buffer: dict[str, Any], where: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(trainer.get("lm_name"), str):
        found["model_name"] = trainer["lm_name"]
    hook = hook_of(trainer.get("submodule_name")) if buffer.get("io", "out") == "out" else None
    if hook is not None:
        found["hook_name"] = hook
    if type(buffer.get("ctx_len")) is int:
        found["context_size"] = buffer["ctx_len"]
    if trainer:
        found["trainer"] = trainer
    return {**found, **section(config, "metadata", where)}


def write_dictionary_learning(
    dictionary: Dictionary, path: str | Path, metadata: dict[str, Any] | None = None
) -> list[str]:
    """Write `path`/ae.pt and `path`/config.json, from which the library's `load_dictionary` makes the same dictionary,
    and return sentences on what it will not find there. Raises UserError for what it has no class for."""
    path = Path(path)
    metadata = dictionary.metadata if metadata is None else metadata
    architecture = architecture_of(dictionary, metadata)
    name = name_in(architecture, "dictionary-learning")
    parts, metadata = as_written(dictionary, metadata)
    if parts.kind == "relu" and not parts.subtract_b_dec:
        name = "AutoEncoderNew"
    elif parts.kind == "jumprelu":
        parts = without_subtraction(parts)
    else:
        parts = with_subtraction(parts)
    path.mkdir(parents=True, exist_ok=True)
    with replacing(path / WEIGHTS) as temporary:
        torch.save(_state(name, parts), temporary)
    write_text(path / CONFIG, json.dumps(_config(name, parts, metadata), indent=2, allow_nan=False) + "\n")
    lost = sorted(set(metadata) - {"model_name", "context_size", "trainer", "format", "architecture"})
    lost = [key for key in lost if key not in ("d_in", "d_sae", "d_out")]
    return [f"dictionary_learning does not look at the metadata ({', '.join(lost)}), kept in {CONFIG}."] if lost else []


def _state(name: str, parts: Parts) -> OrderedDict[str, Tensor]:
    tensors = {**parts.tensors(), "threshold": parts.features.get("threshold")}
    if name in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        threshold = parts.settings.get("threshold", 0.0)
        tensors["threshold"] = torch.tensor(threshold if threshold > 0 else -1.0)  # -1: as long as it is not known
    shapes = dict(SHAPES[name]) | ({"threshold": ""} if name == "AutoEncoderTopK" else {})
    state: OrderedDict[str, Tensor] = OrderedDict()
    for key in shapes:
        tensor = tensors[OURS.get(key, key)]
        assert tensor is not None
        state[key] = tensor.T.contiguous() if key in TRANSPOSED else tensor
    if "k" in parts.settings:
        state["k"] = torch.tensor(min(parts.settings["k"], LARGEST), dtype=torch.int)
    if "widths" in parts.settings:
        state["group_sizes"] = torch.tensor([b - a for a, b in pairwise([0, *parts.settings["widths"]])])
    return state


def _config(name: str, parts: Parts, metadata: dict[str, Any]) -> dict[str, Any]:
    said = metadata.get("trainer")
    trainer = dict(said) if isinstance(said, dict) else {}
    trainer |= {"dict_class": name, "activation_dim": parts.d_in, "dict_size": parts.d_sae}
    trainer.setdefault("lm_name", metadata.get("model_name"))
    for key in ("layer", "submodule_name"):
        trainer.setdefault(key, None)
    trainer.pop("k", None)
    if "k" in parts.settings:
        trainer["k"] = parts.settings["k"]
    if "widths" in parts.settings:
        trainer["group_sizes"] = [b - a for a, b in pairwise([0, *parts.settings["widths"]])]
    left = {
        k: v for k, v in metadata.items() if k not in ("trainer", "format", "architecture", "d_in", "d_sae", "d_out")
    }
    return {"trainer": trainer, "buffer": {"ctx_len": metadata.get("context_size")}, "metadata": left}
