"""Documents' tokens, joined and cut into contexts of equal length."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32

Tokens = Int32[np.ndarray, " tokens"]
"""32 bits suffice for any vocabulary, and a block holds millions."""

_GATHERED_AT_A_TIME = 4096  # contexts: an index takes twice the memory of what it gathers


class Packer:
    """Cuts a sequence of documents into contexts; what does not fill one is kept for the next call.

    With `bos="context"` a context that starts in the middle of a document gets a BOS in front, and documents are
    joined by one; with "document" every document starts with BOS; with "none" documents follow one another directly.
    A document that brings its own BOS (a pre-tokenised one) gets no second one. A BOS belongs to the document of the
    token that follows it.
    """

    def __init__(self, length: int, bos: Literal["context", "document", "none"], bos_token_id: int | None):
        if bos != "none" and bos_token_id is None:
            raise ValueError(f"bos={bos!r} needs a BOS token")
        self.length, self.bos = length, bos
        self.bos_token_id = -1 if bos_token_id is None else bos_token_id
        self.tokens: Tokens = np.empty(0, np.int32)
        """What is left over, less than a context."""
        self.documents: Tokens = np.empty(0, np.int32)
        self.starts: Bool[np.ndarray, " tokens"] = np.empty(0, bool)
        """Where a left-over token is a BOS that starts a document."""

    def pack(
        self, documents: list[tuple[int, Tokens]]
    ) -> tuple[Int32[np.ndarray, "n length"], Int32[np.ndarray, "n length"]]:
        """Contexts, and for every token the number of its document, from (number, tokens) pairs."""
        tokens, numbers, starts = [self.tokens], [self.documents], [self.starts]
        for number, ids in documents:
            if len(ids) == 0:
                continue
            own = self.bos != "none" and ids[0] == self.bos_token_id
            if self.bos != "none" and not own:
                ids = np.concatenate([np.array([self.bos_token_id], np.int32), ids])
            tokens.append(ids.astype(np.int32, copy=False))
            numbers.append(np.full(len(ids), number, np.int32))
            start = np.zeros(len(ids), bool)
            start[0] = self.bos != "none"
            starts.append(start)
        flat, number, start = np.concatenate(tokens), np.concatenate(numbers), np.concatenate(starts)
        heads, taken = [], []  # first token of each context, and whether a BOS goes in front of it
        at = 0
        while True:
            extra = int(self.bos == "context" and at < len(flat) and not start[at])
            if at + self.length - extra > len(flat):
                break
            heads.append(at)
            taken.append(extra)
            at += self.length - extra
        self.tokens, self.documents, self.starts = flat[at:].copy(), number[at:].copy(), start[at:].copy()
        packed = np.empty((2, len(heads), self.length), np.int32)
        for i in range(0, len(heads), _GATHERED_AT_A_TIME):
            part = slice(i, i + _GATHERED_AT_A_TIME)
            head, extra = np.array(heads[part])[:, None], np.array(taken[part])[:, None]
            index = np.maximum(head + np.arange(self.length)[None] - extra, head)
            packed[0, part], packed[1, part] = flat[index], number[index]
        if self.bos == "context":
            packed[0, :, 0] = self.bos_token_id
        return packed[0], packed[1]

    def state_dict(self) -> dict[str, list[int]]:
        starts = self.starts.astype(int)
        return {"tokens": self.tokens.tolist(), "documents": self.documents.tolist(), "starts": starts.tolist()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.tokens = np.array(state["tokens"], np.int32)
        self.documents = np.array(state["documents"], np.int32)
        self.starts = np.array(state["starts"], bool)
