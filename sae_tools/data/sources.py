"""From what a configuration names as its source to documents."""

from __future__ import annotations

from typing import Any

from sae_tools.config import DataConfig
from sae_tools.data.documents import Corpus, DocumentSource, Shard, ShardedDocuments, Split
from sae_tools.data.files import FileCorpus
from sae_tools.data.hub import HubDocumentSource
from sae_tools.data.python_sources import NAMES, PythonCorpus
from sae_tools.errors import UserError


def open_documents(cfg: DataConfig, *, split: Split = "train", seed: int = 0) -> DocumentSource:
    """The documents of `cfg.source`.

    Raises UserError where a source does not exist, is of an unknown kind, or holds no document of the split that
    could be told without reading it.
    """
    names = [cfg.source] if isinstance(cfg.source, str) else cfg.source
    if not names:
        raise UserError("data.source: expected a source or a list of them, found an empty list.")
    corpora: list[Corpus] = []
    python = [name for name in names if name in NAMES]
    if python:
        corpora.append(PythonCorpus("python-installed" in python, "python-stdlib" in python, cfg.heldout))
    remote = [name for name in names if name.startswith("hub:")]
    if remote and len(names) > 1:
        raise UserError(f"data.source: {remote[0]} can be read on its own only, not in a list with other sources.")
    if remote:
        return HubDocumentSource(cfg, split=split, seed=seed)
    for name in names:
        if name not in python:
            corpora.append(FileCorpus(name, cfg.text_column, cfg.token_column))
    return ShardedDocuments(JoinedCorpus(corpora), split, seed, cfg.heldout)


class JoinedCorpus:
    """Several sources as one."""

    def __init__(self, corpora: list[Corpus]):
        self.corpora = corpora
        self.shards: list[Shard] = [shard for corpus in corpora for shard in corpus.shards]

    def fingerprint(self) -> dict[str, Any]:
        if len(self.corpora) == 1:
            return self.corpora[0].fingerprint()
        return {"sources": [corpus.fingerprint() for corpus in self.corpora]}
