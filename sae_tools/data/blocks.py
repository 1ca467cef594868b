"""Blocks of contexts: documents in the source's order, some megabytes at a time, permuted, tokenised, packed, permuted.

Each permutation has its own generator, named by epoch and block, so that a block is a function of the position where
its reading begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from sae_tools.config import DataConfig
from sae_tools.data.documents import Document, DocumentSource, Split
from sae_tools.data.packing import Packer
from sae_tools.data.tokens import Encode
from sae_tools.errors import UserError
from sae_tools.seeds import numpy_generator

_CHARACTERS_PER_TOKEN = 4  # only to size blocks of documents that come as tokens


class Interrupted(Exception):
    """Raised inside a read that is no longer wanted."""


@dataclass(frozen=True)
class Block:
    """The contexts of one block, maybe none, in the order in which they are served."""

    start: dict[str, Any]
    """The position from which it was read, JSON-able."""
    tokens: Int32[np.ndarray, "contexts length"]
    documents: Int32[np.ndarray, "contexts length"]
    """Number of each token's document."""

    def __len__(self) -> int:
        return len(self.tokens)


class BlockReader:
    """Reads block after block. One thread at a time may use it.

    Args:
        encode: texts to ids; None where the source brings token ids.
        epochs: passes over the documents; None: endless.
        vocabulary: number of token ids; one beyond it raises UserError.
    """

    def __init__(
        self,
        cfg: DataConfig,
        source: DocumentSource,
        encode: Encode | None,
        packer: Packer,
        *,
        split: Split,
        seed: int,
        epochs: int | None,
        vocabulary: int | None,
    ):
        self.cfg, self.source, self.split, self.seed = cfg, source, split, seed
        self.epochs, self.vocabulary = epochs, vocabulary
        self._encode, self._packer = encode, packer
        self._block = 0  # of this epoch
        self._next_document = 0
        self._contexts_of_epoch = 0
        self._tokens_of_epoch = 0
        self.contexts = 0
        """Contexts before this position."""

    @property
    def over(self) -> bool:
        """Whether there is nothing left to read."""
        return self.epochs is not None and self.source.epoch >= self.epochs

    def position(self) -> dict[str, Any]:
        return {
            "source": self.source.state_dict(),
            "block": self._block,
            "next_document": self._next_document,
            "contexts_of_epoch": self._contexts_of_epoch,
            "tokens_of_epoch": self._tokens_of_epoch,
            "left_over": self._packer.state_dict(),
        }

    def go_to(self, position: dict[str, Any], contexts: int) -> None:
        """Goes to a position, before which there were `contexts` contexts."""
        self.source.load_state_dict(position["source"])
        self._block, self._next_document = position["block"], position["next_document"]
        self._contexts_of_epoch, self._tokens_of_epoch = position["contexts_of_epoch"], position["tokens_of_epoch"]
        self._packer.load_state_dict(position["left_over"])
        self.contexts = contexts

    def read(self, unwanted: Callable[[], bool] = lambda: False) -> Block | None:
        """The next block; None when there is nothing left.

        unwanted: asked at every document; when it says yes, reading ends by Interrupted.
        A read that ends by an exception has not happened: the next one begins where it began. Raises UserError where
        the source cannot be read, has an id outside the vocabulary, or has been read to its end without a context.
        """
        if self.over:
            return None
        start, contexts = self.position(), self.contexts
        try:
            return Block(start, *self._read(unwanted))
        except BaseException:
            self.go_to(start, contexts)
            raise

    def _read(self, unwanted: Callable[[], bool]) -> tuple[np.ndarray, np.ndarray]:
        random = numpy_generator(self.seed, "contexts", self.source.epoch, self._block)
        documents, over = self._gather(unwanted)
        if self.split == "train":
            documents = [documents[i] for i in random.permutation(len(documents))]
        ids = self._tokenise(documents, unwanted)
        numbered = list(enumerate(ids, self._next_document))
        self._next_document += len(ids)
        self._tokens_of_epoch += sum(map(len, ids))
        tokens, numbers = self._packer.pack(numbered)
        if self.split == "train":
            order = random.permutation(len(tokens))
            tokens, numbers = tokens[order], numbers[order]
        self._contexts_of_epoch += len(tokens)
        self.contexts += len(tokens)
        self._block += 1
        if over:
            self._end_epoch()
        return tokens, numbers

    def _gather(self, unwanted: Callable[[], bool]) -> tuple[list[Document], bool]:
        """Documents of one block, and whether the epoch ends with it."""
        documents: list[Document] = []
        characters = 0
        while characters < self.cfg.shuffle_characters:
            if unwanted():
                raise Interrupted
            document = self.source.read()
            if document is None:
                return documents, True
            documents.append(document)
            if document.text is not None:
                characters += len(document.text)
            else:
                characters += _CHARACTERS_PER_TOKEN * len(document.tokens or ())
        return documents, False

    def _tokenise(self, documents: list[Document], unwanted: Callable[[], bool]) -> list[np.ndarray]:
        def texts() -> Iterator[str]:
            for document in documents:
                if unwanted():
                    raise Interrupted
                yield document.text or ""

        if self._encode is not None:
            ids = self._encode(texts())
        else:
            ids = [np.array(document.tokens or [], np.int32) for document in documents]
        if self.vocabulary is not None:
            for document, row in zip(documents, ids, strict=True):
                if len(row) and row.max() >= self.vocabulary:
                    raise UserError(
                        f"{document.key}: token id {row.max()} is outside the model's vocabulary of {self.vocabulary}."
                    )
        return ids

    def _end_epoch(self) -> None:
        part = "held-out part" if self.split == "heldout" else "training part"
        last = self.epochs is not None and self.source.epoch + 1 >= self.epochs
        if self._tokens_of_epoch == 0 or (last and self.contexts == 0):
            raise UserError(
                f"data.source: the {part} of {self.cfg.source} holds {self._tokens_of_epoch} tokens, not enough for "
                f"one context of {self.cfg.context_length} (data.heldout is {self.cfg.heldout}; "
                f"{len(self.source.skipped)} documents could not be read)."
            )
        self.source.start(self.source.epoch + 1)
        self._block = self._contexts_of_epoch = self._tokens_of_epoch = 0
