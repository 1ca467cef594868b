"""Local sources: every format, plain and compressed, and one sentence for each way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sae_tools.config import DataConfig
from sae_tools.data.documents import Document, DocumentSource
from sae_tools.data.files import PIECE_CHARACTERS
from sae_tools.data.sources import open_documents
from sae_tools.errors import UserError

TEXTS = [f"Document {i}: ünïcode\nand a second line.\n" for i in range(40)]


def documents(source: DocumentSource) -> list[Document]:
    return list(iter(source.read, None))


def read(path: Path | str | list[str], **settings) -> list[Document]:
    source = path if isinstance(path, list) else str(path)
    return documents(open_documents(DataConfig(source=source, heldout=0, **settings)))


def json_lines(texts: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


def zst(content: bytes) -> bytes:
    """In two frames, as parallel writers leave them."""
    half = len(content) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (content[:half], content[half:]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson", "a.parquet"])
def test_formats(name: str, tmp_path: Path):
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=7)
    else:
        content = json_lines(TEXTS)
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else zst(content) if "zst" in name else content)
    assert [d.text for d in read(path)] == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md.gz", "a.txt.zst", "anything"])
def test_a_text_file_is_one_document(name: str, tmp_path: Path):
    path = tmp_path / name
    content = "".join(TEXTS).encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else zst(content) if "zst" in name else content)
    (found,) = read(path)
    assert found.text == "".join(TEXTS)


@pytest.mark.parametrize("line", ["x" * 70 + "\n", "x" * (PIECE_CHARACTERS // 2 - 1) + "\n", "no line ends at all"])
def test_a_long_text_file_is_cut_at_line_ends(line: str, tmp_path: Path):
    text = line * (5 * PIECE_CHARACTERS // 2 // len(line))
    (tmp_path / "long.txt").write_text(text)
    pieces = [d.text or "" for d in read(tmp_path / "long.txt")]
    assert "".join(pieces) == text and len(pieces) >= 3
    assert all(0 < len(piece) <= PIECE_CHARACTERS for piece in pieces)
    if line.endswith("\n"):
        assert all(piece.endswith("\n") for piece in pieces)


def test_folders_and_lists_of_sources(tmp_path: Path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.jsonl").write_bytes(json_lines(TEXTS[:3]))
    (tmp_path / "deep" / "a.txt").write_text("one text")
    (tmp_path / "deep" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "c.txt").write_text("another")
    assert {d.text for d in read(tmp_path / "deep")} == {*TEXTS[:3], "one text"}
    assert {d.text for d in read([str(tmp_path / "deep"), str(tmp_path / "c.txt")])} == {
        *TEXTS[:3],
        "one text",
        "another",
    }


def test_columns(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS, "content"))
    assert [d.text for d in read(tmp_path / "a.jsonl", text_column="content")] == TEXTS


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_tokens_instead_of_text(name: str, tmp_path: Path):
    rows = [[1, 2, 3], [4, 5]]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"ids": rows}), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    assert [d.tokens for d in read(tmp_path / name, token_column="ids")] == rows


def test_nulls_and_undecodable_files_are_skipped_and_counted(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "kept"}\n{"text": null}\n\n')
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe not UTF-8")
    source = open_documents(DataConfig(source=str(tmp_path), heldout=0))
    assert [d.text for d in documents(source)] == ["kept"]
    assert source.skipped == {"a.jsonl:2", "b.txt"}


def fails(path: Path | str | list[str], **settings) -> str:
    with pytest.raises(UserError) as error:
        read(path, **settings)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_mistakes_name_file_and_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": broken}\n')
    assert fails(path) == f"{path}, line 2: expected a JSON object, but expecting value at character 10."
    path.write_text('{"text": "fine"}\n\n["list"]\n')
    assert fails(path) == f"{path}, line 3: expected a JSON object, found list."
    path.write_text('{"txt": "fine", "id": 3}\n')
    assert fails(path) == f"{path}, line 1: expected a column 'text', found 'txt', 'id'."
    path.write_text('{"text": 17}\n')
    assert fails(path) == f"{path}, line 1: expected text in column 'text', found int."
    path.write_bytes(b'{"text": "\xff"}\n')
    assert "line 1" in fails(path) and "UTF-8" in fails(path)
    path.write_text("[" * 100_000 + "\n")
    assert "line 1" in fails(path)
    path.write_text('{"ids": [1, -2]}\n')
    assert "expected a list of token ids in column 'ids'" in fails(path, token_column="ids")
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    assert fails(tmp_path / "a.parquet") == f"{tmp_path / 'a.parquet'}: expected a column 'text', found 'body'."


def test_damaged_and_missing_files(tmp_path: Path):
    whole = gzip.compress(json_lines(TEXTS * 100))
    for name, content in {
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "no.jsonl.gz": b"not gzip",
        "no.jsonl.zst": b"not zstandard",
        "no.parquet": b"not parquet",
        "cut.txt.gz": gzip.compress("".join(TEXTS).encode())[:-20],
    }.items():
        (tmp_path / name).write_bytes(content)
        assert name in fails(tmp_path / name) and "cannot be read" in fails(tmp_path / name)
    assert "'nowhere.jsonl' does not exist" in fails("nowhere.jsonl")
    assert "python-stdlib" in fails("python-stdlb")
    (tmp_path / "empty").mkdir()
    assert ".jsonl" in fails(tmp_path / "empty")
    assert "empty list" in fails([])
    (tmp_path / "a.txt").write_text("x")
    assert "no column 'ids'" in fails(tmp_path / "a.txt", token_column="ids")
    assert "on its own" in fails(["hub:someone/something", str(tmp_path / "a.txt")])


def test_fingerprint_tells_versions_apart(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(TEXTS))
    cfg = DataConfig(source=str(path))
    before = open_documents(cfg).fingerprint()
    assert before == open_documents(cfg, split="heldout", seed=3).fingerprint() == json.loads(json.dumps(before))
    path.write_bytes(json_lines([*TEXTS[:-1], TEXTS[-1].upper()]))
    assert open_documents(cfg).fingerprint() != before


def test_real_novels_in_bounded_memory(shared: Path):
    source = open_documents(DataConfig(source=str(shared / "data" / "novels.jsonl.gz"), heldout=0))
    first = source.read()
    assert first is not None and first.text is not None and len(first.text) > 100_000
