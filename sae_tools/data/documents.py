"""Documents of a corpus, one after the other, in an order that the seed gives and from a position that can be saved.

A corpus is a list of shards (a Python file; a text, JSONL or parquet file). Each epoch takes the shards in a new seeded
order; inside a shard documents come as they stand, so that memory stays bounded whatever the file's size (ContextStream
then shuffles blocks of documents). A position is therefore three small numbers: epoch, shard, document in the shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sae_tools.seeds import numpy_generator

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Document:
    """A document: its text, or its token ids where the source is already tokenised."""

    key: str
    """Where it stands in the source: a module path, or `file:number`."""
    text: str | None
    tokens: list[int] | None = None


@dataclass(frozen=True)
class Skipped:
    """A piece of the source that could not be read (it counts as a position, but holds no document)."""

    key: str


class Shard(Protocol):
    """A part of a corpus that is read from its beginning."""

    @property
    def key(self) -> str: ...

    @property
    def decided(self) -> Split | None:
        """The split of the whole shard where its key decides it; None: every document decides by its text."""

    def documents(self) -> Iterator[Document | Skipped]: ...


class Corpus(Protocol):
    """What a data source names."""

    @property
    def shards(self) -> Sequence[Shard]: ...

    def fingerprint(self) -> dict[str, Any]: ...


def share_of_hash(key: str | bytes) -> float:
    """A number in [0, 1) that depends on nothing but `key`: the held-out part is where it is below `data.heldout`."""
    key = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64


def split_of(key: str | bytes, heldout: float) -> Split:
    return "heldout" if share_of_hash(key) < heldout else "train"


def split_of_document(document: Document, heldout: float) -> Split:
    if document.text is not None:
        return split_of(document.text, heldout)
    return split_of(" ".join(map(str, document.tokens or ())), heldout)


class DocumentSource(Protocol):
    """The documents of one split, epoch by epoch."""

    split: Split
    epoch: int
    skipped: set[str]
    """Keys of what could not be read so far."""

    def start(self, epoch: int) -> None:
        """Goes to the beginning of an epoch."""

    def read(self) -> Document | None:
        """The next document; None when the epoch is over."""

    def state_dict(self) -> dict[str, Any]:
        """The position: small, JSON-able."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def fingerprint(self) -> dict[str, Any]:
        """What the source consists of (JSON-able); equal fingerprints mean equal documents in equal order."""
        ...


class ShardedDocuments:
    """A DocumentSource of shards.

    The training part comes in a seeded order, different in every epoch; the held-out part always in the same order, by
    hash.
    """

    def __init__(self, corpus: Corpus, split: Split, seed: int, heldout: float):
        self.split: Split = split
        self.seed = seed
        self.heldout = heldout
        self._corpus = corpus
        self._shards = [shard for shard in corpus.shards if shard.decided in (None, split)]
        self.skipped: set[str] = set()
        self.start(0)

    def start(self, epoch: int) -> None:
        self.epoch = epoch
        self._shard = 0
        self._document = 0  # documents of the shard that have been passed, whichever split they are in
        self._open: Iterator[Document | Skipped] | None = None
        if self.split == "train":
            self._order = numpy_generator(self.seed, "documents", epoch).permutation(len(self._shards)).tolist()
        else:
            self._order = sorted(range(len(self._shards)), key=lambda i: (share_of_hash(self._shards[i].key), i))

    def read(self) -> Document | None:
        while self._shard < len(self._order):
            shard = self._shards[self._order[self._shard]]
            if self._open is None:
                self._open = shard.documents()
                for _ in range(self._document):
                    next(self._open, None)
            document = next(self._open, None)
            if document is None:
                self._shard, self._document, self._open = self._shard + 1, 0, None
                continue
            self._document += 1
            if isinstance(document, Skipped):
                self.skipped.add(document.key)
            elif (shard.decided or split_of_document(document, self.heldout)) == self.split:
                return document
        return None

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "shard": self._shard, "document": self._document}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start(state["epoch"])
        self._shard, self._document = state["shard"], state["document"]

    def fingerprint(self) -> dict[str, Any]:
        return self._corpus.fingerprint()
