"""Loading a language model: bundled, a local Hugging Face folder, a hub name, or a TransformerBridge in memory.

Weights stay raw: nothing folded, nothing centred, since that would change the very basis we study. Only safetensors are
read, never a pickle, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers.utils import logging as transformers_logging

from sae_tools.errors import UserError
from sae_tools.models.locate import Kind, locate_model
from sae_tools.models.size import parameter_count, weights_fingerprint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(eq=False)
class LanguageModel:
    """A frozen language model with its tokenizer and the numbers that every room asks for."""

    bridge: TransformerBridge
    """Parameters do not require gradients; evaluation mode; weights unprocessed."""
    tokenizer: Any | None
    """Our own tokenizer, untouched by TransformerLens; None for a folder that has none (pre-tokenised data only)."""
    name: str
    kind: Kind | Literal["memory"]
    folder: Path | None = None
    """Where it was loaded from; None for a bridge that was in memory."""
    revision: str | None = None
    view_cache: dict[str, Any] = field(default_factory=dict, repr=False)
    """Holds the plain view (models/plain.py) and what was verified about it."""

    @property
    def n_layers(self) -> int:
        return self.bridge.cfg.n_layers

    @property
    def d_model(self) -> int:
        return self.bridge.cfg.d_model

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's hidden activations (of layer 0; a site's own width is `Site.width`)."""
        return int(self.bridge.cfg.d_mlp or 4 * self.d_model)

    @property
    def d_vocab(self) -> int:
        """Rows of the embedding; may exceed the tokenizer's vocabulary (Pythia pads it)."""
        return self.bridge.cfg.d_vocab

    @property
    def n_ctx(self) -> int:
        """The longest context the model was made for, in tokens."""
        return self.bridge.cfg.n_ctx

    @property
    def architecture(self) -> str:
        """Class name of the Hugging Face model, e.g. `GPT2LMHeadModel`."""
        return type(self.bridge.original_model).__name__

    @property
    def device(self) -> torch.device:
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        # bridge.cfg.dtype can be wrong for a model that was loaded elsewhere; the parameters cannot.
        return next(self.bridge.parameters()).dtype

    @cached_property
    def bos_token_id(self) -> int | None:
        """The tokenizer's BOS, else its EOS (as GPT-2 and Pythia were trained), else the config's."""
        config = getattr(self.bridge.original_model, "config", None)
        for owner in (self.tokenizer, config):
            for attribute in ("bos_token_id", "eos_token_id"):
                token = getattr(owner, attribute, None)
                if isinstance(token, int) and 0 <= token < self.d_vocab:
                    return token
        return None

    @cached_property
    def special_token_ids(self) -> tuple[int, ...]:
        """BOS, EOS, padding and the like, sorted. Not the unknown token alone: it stands for text."""
        if self.tokenizer is None:
            return () if self.bos_token_id is None else (self.bos_token_id,)
        names = set(self.tokenizer.all_special_tokens)
        named = self.tokenizer.special_tokens_map
        others = {token for role, token in named.items() if role != "unk_token" and isinstance(token, str)}
        unknown = named.get("unk_token")
        if unknown is not None and unknown not in others:
            names.discard(unknown)
        ids = {i for i in self.tokenizer.convert_tokens_to_ids(sorted(names)) if i is not None}
        if self.bos_token_id is not None:
            ids.add(self.bos_token_id)
        return tuple(sorted(ids))

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """Hash of everything that decides how text becomes tokens; None without a tokenizer."""
        return None if self.tokenizer is None else tokenizer_fingerprint(self.tokenizer)

    def describe(self) -> dict[str, Any]:
        """What a run writes down about its model: JSON-able, and equal exactly when it is the same model."""
        return {
            "name": self.name,
            "kind": self.kind,
            "revision": self.revision,
            "architecture": self.architecture,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "d_mlp": self.d_mlp,
            "d_vocab": self.d_vocab,
            "n_ctx": self.n_ctx,
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": parameter_count(self.bridge),
            "bos_token_id": self.bos_token_id,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "weights_fingerprint": weights_fingerprint(self.bridge),
        }


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """32 hex digits over vocabulary, merges, normalisation and special tokens (not padding and truncation, which a
    call can change)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    else:
        content = tokenizer.get_vocab()
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def load_model(
    name_or_bridge: str | Path | TransformerBridge | LanguageModel,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    tokenizer: Any | None = None,
) -> LanguageModel:
    """A frozen model in evaluation mode, raw weights, ready to be read and edited.

    name_or_bridge: `bundled`, a local folder (which wins over a hub repository of that name), a hub name — the only
        case that touches the network — or a TransformerBridge, which is taken as it is: its parameters are frozen in
        place, `dtype` and `device` are ignored, its tokenizer is used unless one is given.
    revision: of a hub repository: branch, tag or commit.
    dtype: float32, bfloat16 or float16; weights stored otherwise are converted while loading.
    device: `cpu`, `cuda`, `cuda:1`, …, or `auto` (CUDA where there is one).
    tokenizer: used instead of the model's own.

    Raises UserError, one sentence, for whatever the user can mend: a folder that is missing or no model, weights that
    are truncated or do not fit the config, an architecture without a bridge, a hub that cannot be reached.
    """
    if isinstance(name_or_bridge, LanguageModel):
        return name_or_bridge
    if not isinstance(name_or_bridge, (str, Path)):
        return _from_memory(name_or_bridge, tokenizer)
    if dtype not in DTYPES:
        raise UserError(f"model.dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}.")
    target = _device(device)
    found = locate_model(name_or_bridge, revision=revision)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(found.folder)
    bridge = _boot(found.folder, found.name, DTYPES[dtype], target)
    revision = revision if found.kind == "hub" else None
    return LanguageModel(_frozen(bridge), tokenizer, found.name, found.kind, found.folder, revision)


def load_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None where it has no tokenizer files at all. UserError where they cannot be read."""
    files = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
    if not any((folder / file).exists() for file in files):
        # Without files transformers would make up a near-empty tokenizer and not say so.
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizers library makes of a broken file
        raise UserError(f"The tokenizer in {folder} cannot be read: {first_line(error)}") from error


def _from_memory(bridge: Any, tokenizer: Any | None) -> LanguageModel:
    if not isinstance(bridge, TransformerBridge):
        raise UserError(
            f"A model is 'bundled', a folder, a hub name or a TransformerBridge, but {type(bridge).__name__} was given."
        )
    refuse_processed(bridge)
    tokenizer = tokenizer if tokenizer is not None else bridge.tokenizer
    name = str(getattr(bridge.cfg, "model_name", None) or "memory")
    return LanguageModel(_frozen(bridge), tokenizer, name, "memory")


def refuse_processed(bridge: TransformerBridge) -> None:
    """UserError for a bridge whose weights TransformerLens has folded or centred."""
    if getattr(bridge, "_weights_processed", False):
        raise UserError(
            "The bridge's weights have been processed (folded and centred): boot it again, and call "
            "enable_compatibility_mode only with no_processing=True, if at all."
        )


def _frozen(bridge: TransformerBridge) -> TransformerBridge:
    bridge.eval()
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    return bridge


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"{device!r} is not a device: expected auto, cpu, cuda, cuda:1, ….") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise UserError(f"Device {device} was asked for, but there are {torch.cuda.device_count()} CUDA devices here.")
    return target


def _boot(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> TransformerBridge:
    model, report = _load_weights(folder, dtype)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"The weights in {folder} lack {len(missing)} of the tensors that its config.json asks for, "
            f"among them {missing[0]}."
        )
    model = model.eval().to(device)
    architecture = type(model).__name__
    # The bridge gets a tokenizer of its own: it changes the one it is given.
    try:
        return build_bridge_from_module(
            model, architecture, hf_config=model.config, tokenizer=load_tokenizer(folder), model_name=name
        )
    except ValueError as error:
        raise UserError(f"TransformerLens cannot wrap {architecture} of {name}: {first_line(error)}") from error


def _load_weights(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The folder {folder} has no .safetensors file (other weight formats are not read).")
    try:
        with _quiet():
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            return loaded
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"The model in {folder} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("safetensors", "safetensors_rust", "huggingface_hub"):
            raise
        raise UserError(f"The weights in {folder} cannot be read: {first_line(error)}") from error


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


def first_line(error: BaseException) -> str:
    """The gist of another library's message, at most 200 characters, ending in a full stop."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = text if len(text) <= 200 else text[:199] + "…"
    return text if text.endswith((".", "…")) else text + "."
