from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_tools.analysis.corpus import Corpus, corpus_settings, open_heldout, read_corpus
from sae_tools.analysis.subject import kept_positions
from sae_tools.config import DataConfig, RowsConfig
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel, load_model
from tests.jobs import text_corpus
from tests.tiny_models import tiny_model

ROWS = RowsConfig()


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    source = text_corpus(tmp_path_factory.mktemp("text"))
    return DataConfig(source=str(source), context_length=32, heldout=0.2)


@pytest.mark.parametrize("tokens", [1, 31, 32, 700, 10_000_000])
def test_whole_contexts_until_there_are_enough_tokens(model, data, tokens: int):
    """The same contexts as the held-out stream gives, however little of the text is read ahead."""
    corpus = read_corpus(model, data, ROWS, tokens)
    every = torch.cat([part.tokens for part in open_heldout(model, data)])
    documents = torch.cat([part.document for part in open_heldout(model, data)])
    kept = kept_positions(every, ROWS, model.special_token_ids)
    wanted, counted = 0, 0
    while counted < tokens and wanted < len(every):
        counted += int(kept[wanted].sum())
        wanted += 1
    assert corpus.counted == counted == int(corpus.kept.sum()) and corpus.contexts == wanted and corpus.length == 32
    assert corpus.tokens.equal(every[:wanted].int()) and corpus.document.equal(documents[:wanted].int())
    assert corpus.kept.equal(kept[:wanted])
    assert not corpus.kept[:, 0].any() and not corpus.kept[corpus.tokens == 256].any()


def test_progress(model, data):
    seen = []
    corpus = read_corpus(model, data, ROWS, 5000, seen.append)
    assert seen == sorted(seen) and seen[-1] == corpus.counted


def test_saved_and_loaded(model, data, tmp_path: Path):
    corpus = read_corpus(model, data, ROWS, 100)
    corpus.save(tmp_path / "a", "print")
    loaded, fingerprint = Corpus.load(tmp_path / "a")
    assert fingerprint == "print" and loaded.counted == corpus.counted and loaded.mean_inverse_scale is None
    assert loaded.tokens.equal(corpus.tokens) and loaded.kept.equal(corpus.kept)
    assert loaded.document.equal(corpus.document)


def test_what_decides_the_text_is_in_its_settings(model, data, tmp_path: Path):
    settings = corpus_settings(model, data, ROWS, 100)
    assert settings == corpus_settings(model, data.model_copy(), ROWS, 100)
    assert settings != corpus_settings(model, data, RowsConfig(skip_positions=2), 100)
    assert settings != corpus_settings(model, data, ROWS, 101)
    assert settings != corpus_settings(model, data.model_copy(update={"heldout": 0.3}), ROWS, 100)
    other = text_corpus(tmp_path, documents=119)
    assert settings != corpus_settings(model, data.model_copy(update={"source": str(other)}), ROWS, 100)


def test_text_without_rows(model, data):
    with pytest.raises(UserError, match="gives no rows"):
        read_corpus(model, data, RowsConfig(skip_positions=32), 100)
    with pytest.raises(UserError, match="takes at most 64 tokens"):
        read_corpus(model, data.model_copy(update={"context_length": 65}), ROWS, 100)
