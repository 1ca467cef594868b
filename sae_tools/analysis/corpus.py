"""The held-out text on which dictionaries are studied: read once, kept in memory and on disk as token ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from sae_tools.analysis.subject import kept_positions
from sae_tools.config import DataConfig, RowsConfig
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.rows import Contexts
from sae_tools.runs.tensors import load_tensors, save_tensors

SPREAD = 8
"""How many times the tokens wanted are read at most, to choose from: documents are long and come one after the other,
so the first tokens would be those of a few documents."""
CHARACTERS_PER_TOKEN = 8
"""More than text usually has: decides how much of it is read ahead."""


@dataclass(frozen=True)
class Corpus:
    """Contexts of held-out tokens. A token's flat index is context · length + position."""

    tokens: Int32[Tensor, "contexts length"]
    """Token ids."""
    kept: Bool[Tensor, "contexts length"]
    """Which tokens become rows (`RowsConfig`); features have activations there only."""
    document: Int32[Tensor, "contexts length"]
    """Number of the document that each token belongs to."""
    counted: int
    """Tokens kept."""
    mean_inverse_scale: float | None = None
    """Mean of 1/σ over the kept tokens, σ the final norm's scale; None before the pass has measured it."""

    @property
    def contexts(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """Tokens of a context."""
        return self.tokens.shape[1]

    def batches(self, contexts: int) -> Iterator[Contexts]:
        """All of it in order, so many contexts at a time."""
        for tokens, document in zip(self.tokens.split(contexts), self.document.split(contexts), strict=True):
            yield Contexts(tokens.long(), document.long())

    def thinned(self, tokens: int) -> Corpus:
        """Contexts at even distances with so many kept tokens; all of it where it has no more."""
        if tokens >= self.counted:
            return self
        chosen = evenly_spaced(self.kept.sum(1), tokens)
        kept = self.kept[chosen]
        return Corpus(self.tokens[chosen], kept, self.document[chosen], int(kept.sum()), self.mean_inverse_scale)

    def save(self, path: Path, fingerprint: str) -> None:
        """Write the file whole. Raises UserError where no space is left."""
        meta = {"fingerprint": fingerprint, "counted": self.counted, "mean_inverse_scale": self.mean_inverse_scale}
        save_tensors(path, {"tokens": self.tokens, "kept": self.kept, "document": self.document}, meta)

    @staticmethod
    def load(path: Path) -> tuple[Corpus, str]:
        """(corpus, fingerprint). Raises UserError for a file that is missing, damaged or something else."""
        tensors, meta = load_tensors(path)
        try:
            corpus = Corpus(
                tensors["tokens"], tensors["kept"], tensors["document"], meta["counted"], meta["mean_inverse_scale"]
            )
            return corpus, meta["fingerprint"]
        except KeyError:
            raise UserError(f"{path} is no corpus of a feature report.") from None


def open_heldout(model: LanguageModel, data: DataConfig, batch: int = 64) -> ContextStream:
    """The text that training never sees, once, in its one fixed order, which no seed changes."""
    return ContextStream(
        data,
        model.tokenizer,
        split="heldout",
        batch=batch,
        epochs=1,
        bos_token_id=model.bos_token_id,
        vocabulary=model.d_vocab,
    )


def corpus_settings(model: LanguageModel, data: DataConfig, rows: RowsConfig, tokens: int) -> dict[str, Any]:
    """Everything that decides which tokens are read and counted, JSON-able."""
    return {
        "text": open_heldout(model, data).fingerprint(),
        "data": data.model_dump(mode="json"),
        "rows": rows.model_dump(mode="json"),
        "tokenizer": model.tokenizer_fingerprint,
        "special": list(model.special_token_ids),
        "tokens": tokens,
        "spread": SPREAD,
    }


def read_corpus(
    model: LanguageModel,
    data: DataConfig,
    rows: RowsConfig,
    tokens: int,
    progress: Callable[[int], None] = lambda counted: None,
) -> Corpus:
    """Whole contexts with `tokens` kept tokens together, evenly spaced over the first `SPREAD` times as many of the
    held-out text, so that they come from as many documents as may be; or all contexts there are.

    progress: called with rising numbers of tokens, the last of which is that of the tokens kept. Raises UserError where
    the text gives none, or where its contexts are longer than the model's.
    """
    if data.context_length > model.n_ctx:
        raise UserError(
            f"data.context_length is {data.context_length}, but {model.name} takes at most {model.n_ctx} tokens."
        )
    # The held-out order has no permutations, so a smaller block gives the same contexts, and reads no further.
    block = min(data.shuffle_characters, CHARACTERS_PER_TOKEN * SPREAD * tokens)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    counted = 0
    for contexts in open_heldout(model, data.model_copy(update={"shuffle_characters": block})):
        kept = kept_positions(contexts.tokens, rows, model.special_token_ids)
        parts.append((contexts.tokens, kept, contexts.document))
        counted += int(kept.sum())
        progress(min(counted, SPREAD * tokens) // SPREAD)
        if counted >= SPREAD * tokens:
            break
    if not counted:
        raise UserError(f"data.source: the held-out part of {data.source} gives no rows, so no feature can be shown.")
    ids, kept, document = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    chosen = evenly_spaced(kept.sum(1), tokens)
    corpus = Corpus(
        ids[chosen].to(torch.int32), kept[chosen], document[chosen].to(torch.int32), int(kept[chosen].sum())
    )
    progress(corpus.counted)
    return corpus


def evenly_spaced(counts: Int64[Tensor, " contexts"], tokens: int) -> Int64[Tensor, " chosen"]:
    """Which contexts, in order: as few as hold `tokens` of the tokens counted in each, at even distances; all of them
    where they hold fewer."""
    n = len(counts)
    for wanted in range(min(n, max(1, math.ceil(tokens / max(1, int(counts.max()))))), n):
        chosen = (2 * torch.arange(wanted) + 1) * n // (2 * wanted)
        if int(counts[chosen].sum()) >= tokens:
            return chosen
    return torch.arange(n)
