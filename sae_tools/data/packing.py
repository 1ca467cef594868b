"""Documents' tokens, joined and cut into contexts of equal length."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int64

Tokens = Int64[np.ndarray, " tokens"]


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
        self.length, self.bos, self.bos_token_id = length, bos, bos_token_id
        self.tokens: Tokens = np.empty(0, np.int64)
        """What is left over, less than a context."""
        self.documents: Tokens = np.empty(0, np.int64)
        self.starts: Tokens = np.empty(0, np.int64)
        """1 where a left-over token is a BOS that starts a document."""

    def pack(
        self, documents: list[tuple[int, Tokens]]
    ) -> tuple[Int64[np.ndarray, "n length"], Int64[np.ndarray, "n length"]]:
        """Contexts, and for every token the number of its document, from (number, tokens) pairs."""
        tokens, numbers, starts = [self.tokens], [self.documents], [self.starts]
        for number, ids in documents:
            if len(ids) == 0:
                continue
            own = self.bos != "none" and ids[0] == self.bos_token_id
            if self.bos != "none" and not own:
                ids = np.concatenate([np.array([self.bos_token_id], np.int64), ids])
            tokens.append(ids)
            numbers.append(np.full(len(ids), number, np.int64))
            start = np.zeros(len(ids), np.int64)
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
        self.tokens, self.documents, self.starts = flat[at:], number[at:], start[at:]
        if not heads:
            return np.empty((0, self.length), np.int64), np.empty((0, self.length), np.int64)
        head, extra_ = np.array(heads)[:, None], np.array(taken)[:, None]
        index = np.maximum(head + np.arange(self.length)[None] - extra_, head)
        out = flat[index]
        if self.bos == "context":
            out[:, 0] = self.bos_token_id
        return out, number[index]

    def state_dict(self) -> dict[str, list[int]]:
        return {"tokens": self.tokens.tolist(), "documents": self.documents.tolist(), "starts": self.starts.tolist()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.tokens = np.array(state["tokens"], np.int64)
        self.documents = np.array(state["documents"], np.int64)
        self.starts = np.array(state["starts"], np.int64)
