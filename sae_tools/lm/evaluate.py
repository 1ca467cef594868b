"""`sae-lm evaluate`: a language model's held-out loss beside those of n-gram models of the training text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console

from sae_tools.config import LMEvaluationConfig
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from sae_tools.lm.ngram import NGrams
from sae_tools.models.load import LanguageModel, load_configured
from sae_tools.models.plain import plain_view
from sae_tools.tracking.progress import LINE_EVERY

_COUNTED_AT_A_TIME = 4096  # contexts


def evaluate_lm(
    cfg: LMEvaluationConfig, model: LanguageModel | None = None, ngrams: NGrams | None = None
) -> dict[str, Any]:
    """Mean losses in nats per token on the first `cfg.tokens` held-out tokens of `cfg.data`, the same for all models.

    Returns `model`, `source`, `tokens` (tokens predicted), `loss`, `characters_per_token`, `bits_per_byte` and, unless
    `cfg.ngrams` is off, `unigram`, `bigram`, `trigram`, `ngram_source` and `ngram_tokens`. `model`: one that is in
    memory already, instead of loading `cfg.model`; `ngrams`: some that `count_ngrams` has counted already.
    Raises UserError as load_model and ContextStream do, and where contexts are longer than the model reads.
    """
    if model is None:
        model = load_configured(cfg.model, cfg.device)
    if cfg.data.context_length > model.n_ctx:
        raise UserError(
            f"data.context_length is {cfg.data.context_length}, but {model.name} reads at most {model.n_ctx} tokens."
        )
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer, and bits per byte need one.")
    wanted = math.ceil(cfg.tokens / (cfg.data.context_length - 1))
    stream = ContextStream(
        cfg.data,
        model.tokenizer,
        split="heldout",
        batch=wanted,
        bos_token_id=model.bos_token_id,
        vocabulary=model.d_vocab,
    )
    tokens = next(stream).tokens
    text = model.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
    loss = model_loss(model, tokens, cfg.batch_size)
    result: dict[str, Any] = {
        "model": model.name,
        "source": cfg.data.source,
        "tokens": tokens[:, 1:].numel(),
        "loss": loss,
        "characters_per_token": sum(map(len, text)) / tokens[:, 1:].numel(),
        "bits_per_byte": loss * tokens[:, 1:].numel() / math.log(2) / sum(len(part.encode()) for part in text),
    }
    if cfg.ngrams:
        source = cfg.ngram_source or cfg.data.source
        ngrams = count_ngrams(cfg, model) if ngrams is None else ngrams
        names = ("unigram", "bigram", "trigram")
        losses = ngrams.losses(tokens.numpy())
        result |= {name: float(values.mean()) for name, values in zip(names, losses, strict=True)}
        result |= {"ngram_source": source, "ngram_tokens": ngrams.tokens}
    return result


@torch.no_grad()
def model_loss(model: LanguageModel, tokens: torch.Tensor, batch: int) -> float:
    """Mean cross-entropy of tokens[:, 1:], in float64 over tokens."""
    view = plain_view(model)
    total = 0.0
    for part in tokens.split(batch):
        part = part.to(model.device)
        logits = model.bridge(part) if view is None else view.model(part, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten(), reduction="none"
        )
        total += losses.double().sum().item()
    return total / tokens[:, 1:].numel()


def count_ngrams(cfg: LMEvaluationConfig, model: LanguageModel) -> NGrams:
    """The n-gram models of the training part of `cfg.ngram_source`, in the model's tokens."""
    return NGrams(training_contexts(cfg, model), model.d_vocab)


def training_contexts(cfg: LMEvaluationConfig, model: LanguageModel) -> Iterator[np.ndarray]:
    """One pass over the training part of the n-grams' source, saying now and then how far it is."""
    data = cfg.data if cfg.ngram_source is None else cfg.data.model_copy(update={"source": cfg.ngram_source})
    stream = ContextStream(
        data, model.tokenizer, split="train", batch=_COUNTED_AT_A_TIME, epochs=1, bos_token_id=model.bos_token_id
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    tokens, said = 0, time.monotonic()
    with console.status("counting n-grams") as status:  # shows nothing without a terminal
        for contexts in stream:
            yield contexts.tokens.numpy()
            tokens += contexts.tokens.numel()
            status.update(f"counting n-grams: {tokens:,} tokens")
            if not console.is_terminal and time.monotonic() - said > LINE_EVERY:
                console.print(f"counting n-grams: {tokens:,} tokens")
                said = time.monotonic()


def describe(result: dict[str, Any]) -> str:
    """The figures as a small table, with what each model is."""
    rows = [("loss", f"{result['model']} ({result['bits_per_byte']:.3f} bits per byte)")]
    if "bigram" in result:
        what = f"Witten–Bell, counted on {result['ngram_tokens']:,} tokens of {result['ngram_source']}"
        rows += [("trigram", f"trigrams ({what})"), ("bigram", "bigrams"), ("unigram", "unigrams")]
    lines = [f"Nats per token on {result['tokens']:,} held-out tokens of {result['source']}"]
    return "\n".join([*lines, *(f"  {result[key]:7.4f}  {name}" for key, name in rows)])
