from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.analysis.corpus import Corpus, corpus_settings, evenly_spaced, open_heldout, read_corpus
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
def test_whole_contexts_of_the_held_out_text_at_even_distances(model, data, tokens: int):
    corpus = read_corpus(model, data, ROWS, tokens)
    every = torch.cat([part.tokens for part in open_heldout(model, data)])
    documents = torch.cat([part.document for part in open_heldout(model, data)])
    kept = kept_positions(every, ROWS, model.special_token_ids)
    if tokens > int(kept.sum()):
        assert corpus.tokens.equal(every.int()) and corpus.document.equal(documents.int())
        return
    both = torch.cat([every, documents], 1)
    place = {tuple(context.tolist()): i for i, context in enumerate(both)}
    places = torch.tensor(
        [place[tuple(context.tolist())] for context in torch.cat([corpus.tokens, corpus.document], 1)]
    )
    assert corpus.counted >= tokens and corpus.counted - int(corpus.kept[-1].sum()) - 32 < tokens
    if len(places) > 1:
        assert places.diff().min() > 0 and places.diff().max() - places.diff().min() <= 1
    assert corpus.kept.equal(kept[places]) and corpus.document.equal(documents[places].int())
    assert corpus.counted == int(corpus.kept.sum()) and corpus.length == 32
    assert not corpus.kept[:, 0].any() and not corpus.kept[corpus.tokens == 256].any()


def test_the_contexts_come_from_many_documents(model, data):
    every = torch.cat([part.document for part in open_heldout(model, data)])
    tokens = every.numel() // 6
    corpus = read_corpus(model, data, ROWS, tokens)
    first = every.flatten()[:tokens].unique().numel()
    assert corpus.document.unique().numel() > 2 * first


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 100))
def test_evenly_spaced(counts: list[int], tokens: int):
    chosen = evenly_spaced(torch.tensor(counts), tokens).tolist()
    assert chosen == sorted(set(chosen)) and 0 <= chosen[0] and chosen[-1] < len(counts)
    held = sum(counts[i] for i in chosen)
    assert held >= tokens or len(chosen) == len(counts)


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
