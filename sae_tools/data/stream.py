"""The stream of contexts that training reads: seeded, endless if wanted, and resumable at any context.

Documents come in the source's seeded order. They are gathered into a block of about `cfg.shuffle_characters`,
permuted, tokenised, joined and cut into contexts, and the contexts are permuted again (data/blocks.py), if wanted in
the background (data/ahead.py). A position is only: where the block began in the source, the few tokens left over from
the block before, and how many of its contexts have been served. Resuming reads that one block again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sae_tools.config import DataConfig
from sae_tools.data.ahead import BlocksAhead
from sae_tools.data.blocks import Block, BlockReader
from sae_tools.data.documents import Split
from sae_tools.data.packing import Packer
from sae_tools.data.sources import open_documents
from sae_tools.data.tokens import encoder, is_compiled
from sae_tools.errors import UserError
from sae_tools.rows import Contexts

_SERVED_BEFORE_AHEAD = 0.5
"""Share of a block that is served before the next is read ahead: what ends within a block does not pay for another.
Tokenising takes a small part of the time that anything takes to train on the text, so this is early enough."""


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
        ahead: read the next block in the background once half of a block has been served; with a tokenizer that is not
            compiled, which lets no other thread run, this does nothing. No context and no position depends on it.

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
        ahead: bool = False,
    ):
        self.cfg, self.batch = cfg, batch
        self.ahead = ahead and (cfg.token_column is not None or is_compiled(tokenizer))
        self._source = open_documents(cfg, split=split, seed=seed)
        if tokenizer is None and cfg.token_column is None:
            raise UserError("data.token_column: this source is text, and there is no tokenizer for it.")
        if bos_token_id is None and tokenizer is not None:
            bos_token_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if bos_token_id is None and cfg.bos != "none":
            raise UserError(f"data.bos: {cfg.bos!r} needs a BOS token, and the tokenizer has none; set data.bos=none.")
        reader = BlockReader(
            cfg,
            self._source,
            None if cfg.token_column is not None else encoder(tokenizer),
            Packer(cfg.context_length, cfg.bos, bos_token_id),
            split=split,
            seed=seed,
            epochs=1 if split == "heldout" and epochs is None else epochs,
            vocabulary=vocabulary,
        )
        self._blocks = BlocksAhead(reader)
        self._block = self._no_block(reader.position())
        self._served = 0  # contexts of the block
        self.contexts = 0
        """Contexts delivered so far."""
        self._digest = b""

    # -- iteration

    def __iter__(self) -> ContextStream:
        return self

    def __next__(self) -> Contexts:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        wanted = self.batch
        while wanted:
            if self._served >= len(self._block):
                block = self._blocks.read()
                if block is None:
                    break
                self._block, self._served = block, 0
                continue
            index = slice(self._served, self._served + wanted)
            parts.append((self._block.tokens[index], self._block.documents[index]))
            wanted -= len(parts[-1][0])
            self._served += len(parts[-1][0])
            if self.ahead and self._served >= _SERVED_BEFORE_AHEAD * len(self._block):
                self._blocks.start()
        if not parts:
            raise StopIteration
        tokens = np.concatenate([part[0] for part in parts]).astype(np.int64)
        documents = np.concatenate([part[1] for part in parts]).astype(np.int64)
        for context in tokens:
            self._digest = hashlib.blake2b(self._digest + context.tobytes(), digest_size=16).digest()
        self.contexts += len(tokens)
        return Contexts(torch.from_numpy(tokens), torch.from_numpy(documents))

    def _no_block(self, position: dict[str, Any]) -> Block:
        nothing = np.empty((0, self.cfg.context_length), np.int32)
        return Block(position, nothing, nothing)

    # -- position and identity

    @property
    def epoch(self) -> int:
        """Epoch in which the current block began, 0 first."""
        return self._block.start["source"]["epoch"]

    @property
    def digest(self) -> str:
        """A hash of all tokens delivered so far, in order."""
        return self._digest.hex()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last context delivered: small, JSON-able."""
        return {**self._block.start, "served": self._served, "contexts": self.contexts, "digest": self.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; the very same contexts follow as did when it was taken. Within the block that is being
        served this reads nothing."""
        start = {key: state[key] for key in self._block.start}
        if not (len(self._block) and start == self._block.start):
            self._blocks.go_to(start, state["contexts"])
            block = self._blocks.read() if state["served"] else None
            self._block = self._no_block(start) if block is None else block
        self._served = state["served"]
        self.contexts, self._digest = state["contexts"], bytes.fromhex(state["digest"])

    def fingerprint(self) -> dict[str, Any]:
        """What is read and how (JSON-able); a run that is resumed must find the same."""
        cut = {key: getattr(self.cfg, key) for key in ("context_length", "bos", "heldout", "shuffle_characters")}
        return {**self._source.fingerprint(), **cut}
