"""Text to token ids, many documents at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Int32

Encode = Callable[[Iterable[str]], list[Int32[np.ndarray, " tokens"]]]

_BATCH_CHARACTERS = 1_000_000
"""An encoding holds far more than ids until it is dropped (hundreds of bytes per token), so few live at a time."""


def is_compiled(tokenizer: Any) -> bool:
    """Whether the tokenizer has a Rust part, which lets other threads run while it works."""
    return getattr(tokenizer, "backend_tokenizer", None) is not None


def encoder(tokenizer: Any) -> Encode:
    """A function from texts to their ids, without special tokens: neither added nor read out of the text (a text that
    contains `<|endoftext|>` is about that token, it does not end there).

    `tokenizer` is a Hugging Face tokenizer; its Rust part encodes a batch on all threads where it has one.
    """
    if is_compiled(tokenizer):
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy: the caller's settings stay as they are
        own.no_truncation()
        own.no_padding()
        own.encode_special_tokens = True

        def encode(texts: list[str]) -> list[np.ndarray]:
            return [np.array(e.ids, np.int32) for e in own.encode_batch_fast(texts, add_special_tokens=False)]

    else:

        def encode(texts: list[str]) -> list[np.ndarray]:
            ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            return [np.array(row, np.int32) for row in ids]

    def in_batches(texts: Iterable[str]) -> list[np.ndarray]:
        out: list[np.ndarray] = []
        batch: list[str] = []
        characters = 0
        for text in texts:
            batch.append(text)
            characters += len(text)
            if characters >= _BATCH_CHARACTERS:
                out += encode(batch)
                batch, characters = [], 0
        return out + (encode(batch) if batch else [])

    return in_batches
