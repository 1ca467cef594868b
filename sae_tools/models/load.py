"""Loading a language model: bundled, a local Hugging Face folder, a hub name, or a TransformerBridge in memory.

Weights stay raw: nothing folded, nothing centred, since that would change the very basis we study. Only safetensors are
read, never a pickle, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers.utils import logging as transformers_logging

from sae_tools.config import ModelConfig
from sae_tools.device import pick_device
from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel, refuse_processed
from sae_tools.models.locate import locate_model
from sae_tools.models.shuffle import shuffle_weights_

__all__ = ["DTYPES", "LanguageModel", "load_configured", "load_model", "load_tokenizer"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name_or_bridge: str | Path | TransformerBridge | LanguageModel,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    tokenizer: Any | None = None,
    shuffle_weights: int | None = None,
) -> LanguageModel:
    """A frozen model in evaluation mode, raw weights, ready to be read and edited.

    name_or_bridge: `bundled`, a local folder (which wins over a hub repository of that name), a hub name — the only
        case that touches the network — or a TransformerBridge, which is taken as it is: its parameters are frozen in
        place, `dtype` and `device` are ignored, its tokenizer is used unless one is given.
    revision: of a hub repository: branch, tag or commit.
    dtype: float32, bfloat16 or float16; weights stored otherwise are converted while loading.
    device: `cpu`, `cuda`, `cuda:1`, …, or `auto` (CUDA where there is one).
    tokenizer: used instead of the model's own.
    shuffle_weights: a seed; the entries of every weight matrix are put in a random order, which makes a control that
        has learnt nothing. Not for a model in memory, which would be changed (UserError).

    Raises UserError, one sentence, for whatever the user can mend: a folder that is missing or no model, weights that
    are truncated or do not fit the config, an architecture without a bridge, a hub that cannot be reached.
    """
    if shuffle_weights is not None and not isinstance(name_or_bridge, (str, Path)):
        raise UserError("shuffle_weights is for a model that is loaded by name: one in memory would be changed.")
    if isinstance(name_or_bridge, LanguageModel):
        return name_or_bridge
    if not isinstance(name_or_bridge, (str, Path)):
        return _from_memory(name_or_bridge, tokenizer)
    if dtype not in DTYPES:
        raise UserError(f"model.dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}.")
    target = pick_device(device)
    found = locate_model(name_or_bridge, revision=revision)
    config = _read_config(found.folder)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(found.folder)
    bridge = _boot(found.folder, found.name, config, DTYPES[dtype], target, shuffle_weights)
    revision = revision if found.kind == "hub" else None
    return LanguageModel(_frozen(bridge), tokenizer, found.name, found.kind, found.folder, revision, shuffle_weights)


def load_configured(cfg: ModelConfig, device: str | torch.device) -> LanguageModel:
    """The model that a configuration names; raises as `load_model`."""
    return load_model(
        cfg.name, revision=cfg.revision, dtype=cfg.dtype, device=device, shuffle_weights=cfg.shuffle_weights
    )


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None where it has no tokenizer files at all. UserError where they cannot be read."""
    files = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
    if not any((folder / file).exists() for file in files):
        # Without files transformers would make up a near-empty tokenizer and not say so.
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizers library makes of a broken file
        raise UserError(f"The tokenizer in {folder} cannot be read: {gist(error)}") from error


def _from_memory(bridge: Any, tokenizer: Any | None) -> LanguageModel:
    if type(bridge).__name__ == "HookedTransformer":
        raise UserError(
            "A HookedTransformer is not taken (its weights are folded, and TransformerLens 4 has none): boot the model "
            "with TransformerBridge.boot_transformers, or give its name."
        )
    if not isinstance(bridge, TransformerBridge):
        raise UserError(
            f"A model is 'bundled', a folder, a hub name or a TransformerBridge, but {type(bridge).__name__} was given."
        )
    refuse_processed(bridge)
    tokenizer = tokenizer if tokenizer is not None else bridge.tokenizer
    name = str(getattr(bridge.cfg, "model_name", None) or "memory")
    return LanguageModel(_frozen(bridge), tokenizer, name, "memory")


def _frozen(bridge: TransformerBridge) -> TransformerBridge:
    bridge.eval()
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    return bridge


def _boot(
    folder: Path, name: str, config: Any, dtype: torch.dtype, device: torch.device, shuffle_weights: int | None
) -> TransformerBridge:
    model, report = _load_weights(folder, config, dtype)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"The weights in {folder} lack {len(missing)} of the tensors that its config.json asks for, "
            f"among them {missing[0]}."
        )
    if not any(isinstance(m, torch.nn.ModuleList) and len(m) for m in model.modules()):
        raise UserError(f"The model in {folder} has no layers.")
    if shuffle_weights is not None:  # before the bridge, which copies some of them
        shuffle_weights_(model, shuffle_weights)
    model = model.eval().to(device)
    architecture = type(model).__name__
    # The bridge gets a tokenizer of its own: it changes the one it is given.
    try:
        return build_bridge_from_module(
            model, architecture, hf_config=model.config, tokenizer=load_tokenizer(folder), model_name=name
        )
    except ValueError as error:
        raise UserError(f"TransformerLens cannot wrap {architecture} of {name}: {gist(error)}") from error


def _read_config(folder: Path) -> Any:
    try:
        with _quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a file of the user's: whatever its content makes transformers raise
        raise UserError(f"The config.json in {folder} cannot be used: {gist(error)}") from error


def _load_weights(folder: Path, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The folder {folder} has no .safetensors file (other weight formats are not read).")
    try:
        with _quiet():
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            return loaded
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the same
        if "ignore_mismatched_sizes" in str(error):
            raise UserError(f"The weights in {folder} have other shapes than its config.json asks for.") from error
        if "afetensor" in type(error).__name__:
            raise UserError(f"The weights in {folder} are truncated or no safetensors: {gist(error)}") from error
        raise UserError(f"The model in {folder} cannot be loaded: {gist(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no load report from transformers; what matters in it we raise."""
    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def gist(error: BaseException) -> str:
    """The first sentence of another library's message, at most 240 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    text = text.split(". ")[0].rstrip(".")
    return text + "." if len(text) <= 240 else text[:239] + "…"
