"""A language model as the rest of the package holds it: the bridge, the tokenizer, and what is asked of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from sae_tools.errors import UserError
from sae_tools.models.parameters import parameter_count, weights_fingerprint

HOW_IT_IS_RUN = ("transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict")
"""Of a Hugging Face configuration; the dtype is the parameters' own."""


@dataclass(eq=False)
class LanguageModel:
    """A frozen language model with its tokenizer and the numbers that every room asks for."""

    bridge: TransformerBridge
    """Parameters do not require gradients; evaluation mode; weights unprocessed."""
    tokenizer: Any | None
    """Our own tokenizer, untouched by TransformerLens; None for a folder that has none (pre-tokenised data only)."""
    name: str
    kind: Literal["bundled", "folder", "hub", "memory"]
    folder: Path | None = None
    """Where it was loaded from; None for a bridge that was in memory."""
    revision: str | None = None
    shuffle_weights: int | None = None
    """The seed by which its weights were shuffled; None: they are the learnt ones."""
    view_cache: dict[str, Any] = field(default_factory=dict, repr=False)
    """Holds the plain view (models/plain.py) and what was verified about it."""

    @property
    def title(self) -> str:
        """Its name for readers."""
        return title(self.name, self.shuffle_weights)

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
        """BOS, EOS, padding and whatever else the tokenizer marks as special, sorted; not a token that is only the
        unknown one, which stands for text."""
        if self.tokenizer is None:
            return () if self.bos_token_id is None else (self.bos_token_id,)
        ids = set(self.tokenizer.all_special_ids)
        ids |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        ids.discard(getattr(self.tokenizer, "unk_token_id", None))
        roles = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
        ids |= {getattr(self.tokenizer, role, None) for role in roles} | {self.bos_token_id}
        return tuple(sorted(i for i in ids if i is not None))

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """Hash of everything that decides how text becomes tokens; None without a tokenizer."""
        return None if self.tokenizer is None else tokenizer_fingerprint(self.tokenizer)

    def settings(self) -> dict[str, Any]:
        """What decides, beside the weights, what the model computes (activation function, epsilons, position encoding,
        …): its configuration, JSON-able, without where it lies and how it is run."""
        config = getattr(self.bridge.original_model, "config", None)
        if config is None:
            return {}
        content = json.loads(json.dumps(config.to_dict(), default=str))
        return {key: value for key, value in content.items() if not key.startswith("_") and key not in HOW_IT_IS_RUN}

    def describe(self) -> dict[str, Any]:
        """What a run writes down about its model, JSON-able. The two fingerprints tell whether it is still the same."""
        return {
            "name": self.name,
            "kind": self.kind,
            "revision": self.revision,
            **({} if self.shuffle_weights is None else {"shuffle_weights": self.shuffle_weights}),
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


def title(name: str, shuffle_weights: int | None) -> str:
    """A model's name for readers, who must not take one that has learnt nothing for the one of that name."""
    return name if shuffle_weights is None else f"{name} (weights shuffled, seed {shuffle_weights})"


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


def refuse_processed(bridge: TransformerBridge) -> None:
    """UserError for a bridge whose weights TransformerLens has folded or centred."""
    if getattr(bridge, "_weights_processed", False):
        raise UserError(
            "The bridge's weights have been processed (folded and centred): boot it again, and call "
            "enable_compatibility_mode only with no_processing=True, if at all."
        )
