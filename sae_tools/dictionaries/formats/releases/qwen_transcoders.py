"""Transcoders of Qwen 3 by mwhanna, ReLU: a `layer_N.safetensors` for each layer beside the run's configuration.

W_enc [d_sae, d_in], b_enc, W_dec [d_sae, d_in], b_dec. They read what the MLP reads, the stream after its norm, and
write what it adds. The model's name is in config.yaml, where there is one, and in the repository's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_tools.dictionaries.formats.files import SafetensorsFile, size_of, untrusted
from sae_tools.dictionaries.formats.releases.source import Found, Layout, Source, named_tensors, parts_of

CONFIG = "config.yaml"
RUNS = ("wandb-config.yaml", "wanb-config.yaml")
"""The run's configuration; the second name is some repositories' own."""
LAYOUT = Layout("W_enc", "b_enc", "W_dec", "b_dec", True, True)
FILE = re.compile(r"(?:^|/)layer_(\d+)\.safetensors$")
REPOSITORY = re.compile(r"qwen3-(\d+(?:\.\d+)?)b-transcoders")
MODEL = re.compile(r"^model_name: *['\"]?([\w./-]{1,200})['\"]? *$", re.MULTILINE)
LARGEST_CONFIG = 2**16
"""Bytes."""


def read(source: Source) -> Found:
    tensors = named_tensors(SafetensorsFile(source.path), LAYOUT)
    model = _model(source.path.parent / CONFIG)
    return Found(parts_of("relu", tensors), about(source.name, model), source.path)


def about(name: str, model: str | None) -> dict[str, Any]:
    """What names say, and `model`, which the configuration names."""
    said: dict[str, Any] = {"architecture": "transcoder"}
    repository, layer = REPOSITORY.search(name), FILE.search(name)
    model = model or (f"Qwen/Qwen3-{repository[1]}B" if repository else None)
    if model is not None:
        said |= {"model_name": model, "dataset_path": "monology/pile-uncopyrighted"}
        said["model_from_pretrained_kwargs"] = {"fold_ln": False}
    if layer is not None:
        said["hook_name"] = f"blocks.{layer[1]}.mlp.hook_in"
        said["hook_name_out"] = f"blocks.{layer[1]}.hook_mlp_out"
    return said


def _model(path: Path) -> str | None:
    """The line of config.yaml that names the model: all that is looked at, and no parser of YAML is needed for it."""
    if not path.exists() and not path.is_symlink():
        return None
    with untrusted(path, "text"):
        if size_of(path) > LARGEST_CONFIG:
            raise ValueError("larger than 64 KiB")
        found = MODEL.search(path.read_text(encoding="utf-8"))
    return found and found[1]
