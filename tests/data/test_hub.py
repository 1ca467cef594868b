"""Streamed datasets, on a local one that streams as the hub's do."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from sae_tools.config import DataConfig
from sae_tools.data import hub
from sae_tools.data.sources import open_documents
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from tests.tiny_models import byte_tokenizer

TEXTS = [f"document {i} " * (1 + i % 5) for i in range(200)]


@pytest.fixture
def streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    for k in range(3):
        rows = [json.dumps({"body": text}) + "\n" for text in TEXTS[k::3]]
        (tmp_path / f"{k}.jsonl").write_text("".join(rows))
    files = sorted(str(path) for path in tmp_path.glob("*.jsonl"))
    real = datasets.load_dataset

    def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool):
        assert (name, subset, split, streaming) == ("someone/texts", "small", "train", True)
        return real("json", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return DataConfig(
        source="hub:someone/texts", subset="small", text_column="body", context_length=16, shuffle_characters=500
    )


def test_parts_are_disjoint_and_complete(streamed: DataConfig):
    parts = []
    for split in ("train", "heldout"):
        source = open_documents(streamed.model_copy(update={"heldout": 0.3}), split=split)  # pyright: ignore[reportArgumentType]
        parts.append([document.text for document in iter(source.read, None)])
    assert sorted(t or "" for t in parts[0] + parts[1]) == sorted(TEXTS) and len(parts[1]) > 20


def test_resumes_exactly(streamed: DataConfig):
    tokenizer = byte_tokenizer()
    stream = ContextStream(streamed, tokenizer, batch=5)
    for batches in (0, 7, 40, 60):
        for _ in range(batches):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        expected = [next(stream).tokens.tolist() for _ in range(30)]
        resumed = ContextStream(streamed, tokenizer, batch=5)
        resumed.load_state_dict(state)
        assert [next(resumed).tokens.tolist() for _ in range(30)] == expected
    assert stream.epoch > 0


def test_mistakes(streamed: DataConfig, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="hub:someone/texts.*expected a column 'text'"):
        open_documents(streamed.model_copy(update={"text_column": "text"})).read()

    class Broken:
        column_names = None

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def __iter__(self):
            yield {"body": "fine"}
            raise ConnectionError("gone away.\nand more")

    source = hub.HubDocumentSource(streamed.model_copy(update={"heldout": 0}), split="train", seed=0, dataset=Broken())
    assert source.read() is not None
    with pytest.raises(UserError, match=r"^hub:someone/texts: cannot be read any further \(gone away\)\.$"):
        source.read()

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/texts' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match=r"^hub:someone/texts: cannot be opened \(Couldn't reach 'someone/texts' on the Hub\)\.$"
    ):
        hub.HubDocumentSource(streamed, split="train", seed=0)
