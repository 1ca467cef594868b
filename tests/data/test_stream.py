"""The context stream: exact resume at any point, parts that never meet, and no endless loop on an empty corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_tools.config import DataConfig
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from tests.tiny_models import BOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def texts(n: int) -> list[str]:
    """Documents of different lengths, each of one letter, with its number, so that tokens say where they are from."""
    return [f"<{i}:" + "abcdefghij"[i % 10] * (3 + 7 * i % 40) + ">" for i in range(n)]


def write(path: Path, documents: list[str], files: int = 3) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for k in range(files):
        rows = [json.dumps({"text": text}) + "\n" for text in documents[k::files]]
        (path / f"part{k}.jsonl").write_text("".join(rows))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus"), texts(60))


def open_stream(corpus: Path, split: str = "train", **settings) -> ContextStream:
    named = {key: settings.pop(key) for key in ("seed", "batch", "epochs", "vocabulary", "ahead") if key in settings}
    named = {"batch": 4, **named}
    cfg = DataConfig.model_validate(
        {"source": str(corpus), "context_length": 16, "heldout": 0.2, "shuffle_characters": 300, **settings}
    )
    return ContextStream(cfg, TOKENIZER, split=split, **named)  # pyright: ignore[reportArgumentType]


def take(stream: ContextStream, n: int) -> list[tuple[list, list]]:
    batches = [next(stream) for _ in range(n)]
    return [(batch.tokens.tolist(), batch.document.tolist()) for batch in batches]


def decoded(stream: ContextStream) -> str:
    return "".join(TOKENIZER.decode(row, skip_special_tokens=True) for batch in stream for row in batch.tokens)


def test_shapes_and_bos(corpus: Path):
    batch = next(open_stream(corpus))
    assert batch.tokens.shape == batch.document.shape == (4, 16)
    assert batch.tokens.dtype == batch.document.dtype == torch.int64
    assert (batch.tokens[:, 0] == BOS).all()


@settings(max_examples=25)
@given(
    before=st.integers(0, 40),
    batch=st.integers(1, 7),
    seed=st.integers(0, 3),
    block=st.sampled_from([1, 120, 700, 100_000]),
    bos=st.sampled_from(["context", "document", "none"]),
)
def test_resumes_exactly_at_any_point(corpus: Path, before: int, batch: int, seed: int, block: int, bos: str):
    how = {"batch": batch, "seed": seed, "shuffle_characters": block, "bos": bos}
    stream = open_stream(corpus, **how)
    take(stream, before)
    state = json.loads(json.dumps(stream.state_dict()))
    assert len(json.dumps(state)) < 2000
    expected = take(stream, 30)  # well into the next epoch
    resumed = open_stream(corpus, **how)
    take(resumed, 2)  # a stream that is elsewhere
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert take(resumed, 30) == expected
    assert resumed.digest == stream.digest and resumed.contexts == stream.contexts
    assert resumed.state_dict() == stream.state_dict()


def test_an_epoch_delivers_every_training_document_once(corpus: Path):
    stream = open_stream(corpus, bos="none", epochs=1, batch=1, shuffle_characters=10**6, context_length=2)
    whole = decoded(stream)
    heldout = decoded(open_stream(corpus, "heldout", bos="none", batch=1, context_length=2))
    lengths = {text: len(text) for text in texts(60)}
    # Contexts are permuted, so compare letters rather than documents; at most one odd token is left over.
    assert sum(lengths.values()) - 2 <= len(whole) + len(heldout) <= sum(lengths.values())
    assert 0 < len(heldout) < len(whole)


def documents_in(stream: ContextStream) -> set[str]:
    """The documents that a stream of permuted contexts delivers whole, by reading contexts longer than any of them."""
    return {text for batch in stream for row in batch.tokens for text in TOKENIZER.decode(row).split("<bos>")}


def test_training_and_heldout_never_meet(corpus: Path):
    long = {"context_length": 400, "shuffle_characters": 10**6, "batch": 1}
    heldout = "".join(documents_in(open_stream(corpus, "heldout", **{**long, "context_length": 100})))
    train = "".join(documents_in(open_stream(corpus, epochs=4, **long)))
    numbers = [{i for i in range(60) if f"<{i}:" in part} for part in (train, heldout)]
    assert numbers[0] and numbers[1] and not numbers[0] & numbers[1]


def test_seeds_and_epochs_have_orders_of_their_own(corpus: Path):
    assert take(open_stream(corpus, seed=1), 8) == take(open_stream(corpus, seed=1), 8)
    assert take(open_stream(corpus, seed=1), 8) != take(open_stream(corpus, seed=2), 8)
    stream = open_stream(corpus, batch=1)
    first = []
    while stream.epoch == 0:
        first.append(next(stream).tokens)
    second = []
    while stream.epoch == 1:
        second.append(next(stream).tokens)
    assert abs(len(first) - len(second)) <= 3
    assert not torch.equal(torch.cat(first[:20]), torch.cat(second[:20]))


def test_heldout_is_one_fixed_pass(corpus: Path):
    a = list(open_stream(corpus, "heldout", seed=0))
    b = list(open_stream(corpus, "heldout", seed=9, batch=3))
    assert torch.equal(torch.cat([x.tokens for x in a]), torch.cat([x.tokens for x in b]))
    documents = torch.cat([x.document for x in a]).flatten()
    assert (documents.diff() >= 0).all()


def test_document_numbers_tell_documents_apart(corpus: Path):
    """A document's letter and its number name each other, within an epoch."""
    stream = open_stream(corpus, epochs=1, batch=1)
    letter_of: dict[int, set[str]] = {}
    for batch in stream:
        for token, number in zip(batch.tokens[0].tolist(), batch.document[0].tolist(), strict=True):
            letter = TOKENIZER.decode([token])
            if letter in "abcdefghij":
                letter_of.setdefault(number, set()).add(letter)
    assert len(letter_of) > 30 and all(len(letters) == 1 for letters in letter_of.values())


def test_special_tokens_in_the_text_are_text(tmp_path: Path):
    write(tmp_path, ["say <eos> and <bos> " * 5], files=1)
    tokens = torch.cat([b.tokens for b in open_stream(tmp_path, heldout=0, epochs=1)])
    assert (tokens[:, 1:] < BOS).all()


def test_no_context_is_an_error_and_not_an_endless_loop(tmp_path: Path):
    write(tmp_path / "empty", ["", ""])
    with pytest.raises(UserError, match="holds 0 tokens"):
        next(open_stream(tmp_path / "empty", heldout=0))
    with pytest.raises(UserError, match="held-out part"):
        next(open_stream(tmp_path / "empty", "heldout", heldout=0))
    write(tmp_path / "short", ["abc"])
    with pytest.raises(UserError, match="held-out part of .* holds 3 tokens, not enough for one context of 16"):
        next(open_stream(tmp_path / "short", "heldout", heldout=1))
    assert next(open_stream(tmp_path / "short", heldout=0)).tokens.shape == (4, 16)  # several epochs make a context


def test_pretokenised_source_needs_no_tokenizer(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"ids": [5, 6, 7, 8]}) + "\n" for _ in range(9)))
    cfg = DataConfig(source=str(tmp_path), token_column="ids", bos="none", context_length=4, heldout=0)
    assert next(ContextStream(cfg, None, batch=2)).tokens.tolist() == [[5, 6, 7, 8]] * 2
    cfg = cfg.model_copy(update={"bos": "context"})
    assert next(ContextStream(cfg, None, batch=1, bos_token_id=1)).tokens[0, 0] == 1
    with pytest.raises(UserError, match="data.bos=none"):
        ContextStream(cfg, None)
    with pytest.raises(UserError, match="token id 8 is outside the model's vocabulary of 8"):
        next(ContextStream(cfg, None, bos_token_id=1, vocabulary=8))


def test_text_needs_a_tokenizer(corpus: Path):
    with pytest.raises(UserError, match="no tokenizer"):
        ContextStream(DataConfig(source=str(corpus)), None)


def test_novels_come_in_blocks_of_a_few(shared: Path):
    cfg = DataConfig(source=str(shared / "data" / "novels.jsonl.gz"), shuffle_characters=1_000_000, context_length=64)
    stream = ContextStream(cfg, TOKENIZER, batch=512)
    first = next(stream)
    assert first.tokens.shape == (512, 64) and 2 <= len(first.document.unique()) <= 8
    state = stream.state_dict()
    expected = next(stream).tokens
    resumed = ContextStream(cfg, TOKENIZER, batch=512)
    resumed.load_state_dict(state)
    assert np.array_equal(next(resumed).tokens, expected)


def test_going_back_within_a_block_reads_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    stream = open_stream(corpus)
    beginning = stream.state_dict()
    expected = take(stream, 3)
    monkeypatch.setattr(stream._blocks, "go_to", lambda *_: pytest.fail("read again"))
    stream.load_state_dict(json.loads(json.dumps(beginning)))
    assert stream.state_dict() == beginning
    assert take(stream, 3) == expected
