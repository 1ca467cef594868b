"""The stream of contexts that training reads: seeded, endless if wanted, and resumable at any context.

Documents come in the source's seeded order. They are gathered into a block of about `cfg.shuffle_characters`,
permuted, tokenised in one go, joined and cut into contexts, and the contexts are permuted again. Each permutation has
its own generator, named by epoch and block, so a position is only: where the block began in the source, the few tokens
left over from the block before, and how many of its contexts have been served. Resuming reads that one block again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sae_tools.config import DataConfig
from sae_tools.data.documents import Document, Split
from sae_tools.data.packing import Packer
from sae_tools.data.sources import open_documents
from sae_tools.data.tokens import encoder
from sae_tools.errors import UserError
from sae_tools.rows import Contexts
from sae_tools.seeds import numpy_generator

_CHARACTERS_PER_TOKEN = 4  # only to size blocks of documents that come as tokens


class ContextStream(Iterator[Contexts]):
    """Batches of contexts, `Contexts(tokens int64 [batch, context_length], document int64 [batch, context_length])`.

    Args:
        cfg: where the text comes from, and how it is cut.
        tokenizer: a Hugging Face tokenizer; may be None where `cfg.token_column` is set.
        split: "train" comes in an order given by `seed` and starts again, in a new order, when documents run out;
            "heldout" comes in one fixed order, once.
        seed: of the order of documents and contexts (of no effect on "heldout").
        batch: contexts per batch; the last of a finite stream may be smaller.
        epochs: passes over the documents; None: endless for "train", one for "heldout".
        bos_token_id: which token is BOS; None: the tokenizer's BOS, or else its EOS (as in GPT-2 and Pythia).
        vocabulary: number of token ids that the model knows; an id beyond it raises UserError.

    Document numbers count documents as they are delivered, so the same text has another number in the next epoch.

    Raises UserError when the source is missing or malformed, has no BOS token although one is wanted, or holds not
    even one context.
    """

    def __init__(
        self,
        cfg: DataConfig,
        tokenizer: Any,
        *,
        split: Split = "train",
        seed: int = 0,
        batch: int = 32,
        epochs: int | None = None,
        bos_token_id: int | None = None,
        vocabulary: int | None = None,
    ):
        self.cfg, self.split, self.seed, self.batch = cfg, split, seed, batch
        self.epochs = 1 if split == "heldout" and epochs is None else epochs
        self.vocabulary = vocabulary
        self.source = open_documents(cfg, split=split, seed=seed)
        if tokenizer is None and cfg.token_column is None:
            raise UserError("data.token_column: this source is text, and there is no tokenizer for it.")
        self._encode = None if cfg.token_column is not None else encoder(tokenizer)
        if bos_token_id is None and tokenizer is not None:
            bos_token_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if bos_token_id is None and cfg.bos != "none":
            raise UserError(f"data.bos: {cfg.bos!r} needs a BOS token, and the tokenizer has none; set data.bos=none.")
        self._packer = Packer(cfg.context_length, cfg.bos, bos_token_id)
        self._block = 0  # of this epoch
        self._next_document = 0
        self._contexts_of_epoch = 0
        self._tokens_of_epoch = 0
        self.contexts = 0
        """Contexts delivered so far."""
        self._digest = b""
        self._no_block()

    # -- iteration

    def __iter__(self) -> ContextStream:
        return self

    def __next__(self) -> Contexts:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        wanted = self.batch
        while wanted:
            if self._served == len(self._tokens) and not self._next_block():
                break
            index = slice(self._served, self._served + wanted)
            parts.append((self._tokens[index], self._documents[index]))
            wanted -= len(parts[-1][0])
            self._served += len(parts[-1][0])
        if not parts:
            raise StopIteration
        tokens = np.concatenate([part[0] for part in parts]).astype(np.int64)
        documents = np.concatenate([part[1] for part in parts]).astype(np.int64)
        for context in tokens:
            self._digest = hashlib.blake2b(self._digest + context.tobytes(), digest_size=16).digest()
        self.contexts += len(tokens)
        return Contexts(torch.from_numpy(tokens), torch.from_numpy(documents))

    def _no_block(self) -> None:
        self._tokens = self._documents = np.empty((0, self.cfg.context_length), np.int32)
        self._served = 0
        self._start = self._position()

    def _next_block(self) -> bool:
        """Makes the next block with at least one context; False when the stream is over."""
        while True:
            if self.epochs is not None and self.source.epoch >= self.epochs:
                return False
            self._start = self._position()
            self._served = 0
            self._read_block()
            if len(self._tokens):
                return True

    def _position(self) -> dict[str, Any]:
        return {
            "source": self.source.state_dict(),
            "block": self._block,
            "next_document": self._next_document,
            "contexts_of_epoch": self._contexts_of_epoch,
            "tokens_of_epoch": self._tokens_of_epoch,
            "left_over": self._packer.state_dict(),
        }

    def _read_block(self) -> None:
        epoch, block = self.source.epoch, self._block
        documents, over = self._gather()
        random = numpy_generator(self.seed, "contexts", epoch, block)
        if self.split == "train":
            documents = [documents[i] for i in random.permutation(len(documents))]
        ids = self._tokenise(documents)
        numbered = list(enumerate(ids, self._next_document))
        self._next_document += len(ids)
        self._tokens_of_epoch += sum(map(len, ids))
        self._tokens, self._documents = self._packer.pack(numbered)
        if self.split == "train":
            order = random.permutation(len(self._tokens))
            self._tokens, self._documents = self._tokens[order], self._documents[order]
        self._contexts_of_epoch += len(self._tokens)
        self._block += 1
        if over:
            self._end_epoch()

    def _gather(self) -> tuple[list[Document], bool]:
        """Documents of one block, and whether the epoch ends with it."""
        documents: list[Document] = []
        characters = 0
        while characters < self.cfg.shuffle_characters:
            document = self.source.read()
            if document is None:
                return documents, True
            documents.append(document)
            if document.text is not None:
                characters += len(document.text)
            else:
                characters += _CHARACTERS_PER_TOKEN * len(document.tokens or ())
        return documents, False

    def _tokenise(self, documents: list[Document]) -> list[np.ndarray]:
        if self._encode is not None:
            ids = self._encode([document.text or "" for document in documents])
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
        if self._tokens_of_epoch == 0 or (last and self._contexts_of_epoch == 0 and self.contexts == 0):
            raise UserError(
                f"data.source: the {part} of {self.cfg.source} holds {self._tokens_of_epoch} tokens, not enough for "
                f"one context of {self.cfg.context_length} (data.heldout is {self.cfg.heldout}; "
                f"{len(self.source.skipped)} documents could not be read)."
            )
        self.source.start(self.source.epoch + 1)
        self._block = self._contexts_of_epoch = self._tokens_of_epoch = 0

    # -- position and identity

    @property
    def epoch(self) -> int:
        """Epoch in which the current block began, 0 first."""
        return self._start["source"]["epoch"]

    @property
    def digest(self) -> str:
        """A hash of all tokens delivered so far, in order."""
        return self._digest.hex()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last context delivered: small, JSON-able."""
        return {**self._start, "served": self._served, "contexts": self.contexts, "digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; the very same contexts follow as did when it was taken."""
        self.source.load_state_dict(state["source"])
        self._block, self._next_document = state["block"], state["next_document"]
        self._contexts_of_epoch, self._tokens_of_epoch = state["contexts_of_epoch"], state["tokens_of_epoch"]
        self._packer.load_state_dict(state["left_over"])
        self.contexts, self._digest = state["contexts"], bytes.fromhex(state["digest"])
        self._no_block()
        if state["served"]:
            self._read_block()
            self._served = state["served"]

    def fingerprint(self) -> dict[str, Any]:
        """What is read and how (JSON-able); a run that is resumed must find the same."""
        cut = {key: getattr(self.cfg, key) for key in ("context_length", "bos", "heldout", "shuffle_characters")}
        return {**self.source.fingerprint(), **cut}
