"""Labels against what a reader sees in a text, and tokens against the characters that they stand for."""

from __future__ import annotations

import json
import random as stdlib_random
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_tools.analysis.corpus import read_corpus
from sae_tools.analysis.labels import first_visible, label_corpus, source_of, unique_place, with_offsets
from sae_tools.analysis.labels_prose import prose_labels
from sae_tools.analysis.labels_python import UNKNOWN, is_python, python_labels
from sae_tools.config import DataConfig, RowsConfig
from tests.analysis.subjects import tiny

SOURCE = 'def f(x, y=1.5):  # adds\n    """Doc."""\n    if x:\n        return [x, "a\'b"]\n    return y\n'


def marked(text: str, values: np.ndarray) -> str:
    """The characters with label 1."""
    return "".join(character for character, value in zip(text, values[:-1], strict=True) if value == 1)


def test_classes_of_python():
    labels = python_labels(SOURCE)
    assert marked(SOURCE, labels["class: keyword"]) == "defifreturnreturn"
    assert marked(SOURCE, labels["class: name"]) == "fxyxxy"
    assert marked(SOURCE, labels["class: number"]) == "1.5"
    assert marked(SOURCE, labels["class: operator"]) == "(,=)::[,]"
    assert marked(SOURCE, labels["class: string"]) == '"""Doc.""""a\'b"'
    assert marked(SOURCE, labels["class: comment"]) == "# adds"
    classes = sum(values.astype(int) for task, values in labels.items() if task.startswith("class"))
    assert set(classes[: len(SOURCE)].tolist()) == {1}  # every character has one


def test_quotes_brackets_and_indentation_of_python():
    labels = python_labels(SOURCE)
    assert marked(SOURCE, labels["inside quotes"]) == 'Doc."""a\'b"'
    assert marked(SOURCE, labels["inside triple quotes"]) == 'Doc."""'
    assert marked(SOURCE, labels["inside brackets"]) == 'x, y=1.5)x, "a\'b"]'
    depth = [labels[f"indentation {level}"] for level in range(3)]
    for level, words in ((0, ["def", "# adds"]), (1, ['"""Doc', "if x", "return y"]), (2, ["return ["])):
        for word in words:
            assert depth[level][SOURCE.index(word)] == 1, word


def test_formatted_strings_are_strings_whatever_the_version():
    text = 'x = f"a{b + 1}c"\n'
    labels = python_labels(text)
    assert labels["class: string"][text.index("a")] == 1 and labels["class: string"][text.index("c")] == 1
    assert labels["inside quotes"][text.index("c")] == 1 and labels["inside quotes"][text.index("b")] == 1
    assert labels["inside quotes"][text.index("x")] == 0


@pytest.mark.parametrize("broken", ['x = 1\ny = """never closed\n  more', "x = (1,\n", "if x:\n    a\n  b\nc = 2\n"])
def test_what_does_not_tokenise_is_unknown(broken: str):
    labels = python_labels(broken)
    assert all(len(values) == len(broken) + 1 and values[-1] == UNKNOWN for values in labels.values())
    assert labels["class: name"][0] != UNKNOWN


def test_prose():
    text = 'Alice said: "Run, 2 of you!" He ran.\n\n“No,” he said, “never\n\nThen'
    labels = prose_labels(text)
    assert marked(text, labels["capitalised"]) == "ARHNT"
    assert marked(text, labels["punctuation"]) == ':",!".“,”,“'
    assert marked(text, labels["digit"]) == "2" and marked(text, labels["line end"]) == "\n" * 4
    assert marked(text, labels["inside quotation marks"]) == 'Run, 2 of you!"No,”never\n\n'


def test_python_is_told_from_prose():
    assert is_python(SOURCE) and not is_python("It was a dark night. The rain fell.") and not is_python("Word")
    assert not is_python("x = \0")


def test_a_token_is_what_its_first_visible_character_is():
    text = "  if x"
    offsets = np.array([[0, 2], [1, 4], [4, 6], [6, 6]])
    assert first_visible(text, offsets).tolist() == [0, 2, 5, 6]


def test_a_place_must_be_the_only_one():
    ids = np.array([1, 2, 3, 4, 256, 0, 0, 1, 2, 3, 9], np.int32)
    assert unique_place(ids, ids[0:4]) == 0 and unique_place(ids, ids[1:6]) == 1 and unique_place(ids, ids[6:11]) == 6
    assert unique_place(ids, ids[0:3]) is None  # too short
    assert unique_place(np.tile(ids, 2), ids) is None  # twice
    assert unique_place(ids, np.array([4, 3, 2, 1], np.int32)) is None
    assert unique_place(np.array([0x01000000, 0x02000000, 0x03000000, 0x04000000, 5], np.int32),
                        np.array([1, 2, 3, 4], np.int32)) is None  # fmt: skip


def test_sources():
    assert source_of("stdlib/json/decoder.py") == "json" and source_of("stdlib/argparse.py") is None
    assert source_of("installed/torch/nn/functional.py") == "torch"
    assert source_of("books/one.jsonl:12") == "one.jsonl" and source_of("whatever") is None


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Documents whose every line is different, so that every run has one place."""
    folder = tmp_path_factory.mktemp("text")
    random = stdlib_random.Random(0)
    for file in ("a.jsonl", "b.jsonl"):
        with (folder / file).open("w") as out:
            for _ in range(12):
                lines = [
                    f"name{random.randrange(10**6)} = {random.randrange(10**6)}  # {random.random()}" for _ in range(9)
                ]
                out.write(json.dumps({"text": "\n".join(lines) + "\n"}) + "\n")
    return folder


@pytest.mark.parametrize("bos", ["context", "document", "none"])
def test_tokens_get_the_labels_of_their_characters(text: Path, bos: str):
    """The tokenizer has a token for each byte, so that a token's label must be that of its own character."""
    model = tiny("gpt2")
    data = DataConfig(source=str(text), context_length=32, heldout=1.0, bos=bos)  # type: ignore[arg-type]
    corpus = read_corpus(model, data, RowsConfig(), 3000)
    labels = label_corpus(model, data, corpus)
    assert not isinstance(labels, str) and labels.kind == "python"
    special = np.isin(corpus.tokens.numpy(), model.special_token_ids)
    assert labels.found[~special].mean() > 0.9 and not labels.found[special].any()
    checked = 0
    for context, position in np.argwhere(labels.found).tolist():
        character = model.tokenizer.decode([int(corpus.tokens[context, position])])
        of = {task: int(values[context, position]) for task, values in labels.tasks.items()}
        if character == "=":
            assert of["class: operator"] == 1 and of["class: name"] == 0
            checked += 1
        if character == "#":
            assert of["class: comment"] == 1
        if character in "nam":
            assert of["class: name"] == 1
    assert checked > 20
    names = [task for task in labels.tasks if task.startswith("source")]
    assert names == sorted(names) and set(names) == {"source: a.jsonl", "source: b.jsonl"} or len(names) == 2
    both = labels.tasks["source: a.jsonl"].astype(int) + labels.tasks["source: b.jsonl"]
    assert (both[labels.found] == 1).all()


def test_all_of_a_document_has_one_source(text: Path):
    model = tiny("gpt2")
    data = DataConfig(source=str(text), context_length=32, heldout=1.0)
    corpus = read_corpus(model, data, RowsConfig(), 3000)
    labels = label_corpus(model, data, corpus, "prose")
    assert not isinstance(labels, str) and "digit" in labels.tasks
    for number in corpus.document.unique().tolist():
        mine = labels.found & (corpus.document == number).numpy()
        assert len(set(labels.tasks["source: a.jsonl"][mine].tolist())) <= 1


def test_no_text_no_labels():
    model = tiny("gpt2")
    corpus = read_corpus(model, DataConfig(context_length=32), RowsConfig(), 100)
    said = label_corpus(model, DataConfig(token_column="ids"), corpus)
    assert isinstance(said, str) and "token ids" in said


def test_offsets_are_those_of_the_tokens_that_were_read():
    model = tiny("gpt2")
    ids, offsets = with_offsets(model.tokenizer)("a é<bos>")
    assert ids.tolist() == model.tokenizer("a é", add_special_tokens=False)["input_ids"] + [
        *model.tokenizer("<", add_special_tokens=False)["input_ids"],
        *model.tokenizer("bos>", add_special_tokens=False)["input_ids"],
    ]
    assert offsets[:2].tolist() == [[0, 1], [1, 2]] and torch.tensor(offsets).diff(dim=0).ge(0).all()
