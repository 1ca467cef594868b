"""The text of tokens, against what the tokenizers themselves decode."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from sae_tools.analysis.vocabulary import byte_alphabet, decoded, vocabulary
from sae_tools.models.load import load_model, load_tokenizer
from sae_tools.models.locate import BUNDLED
from tests.tiny_models import BOS, EOS, byte_tokenizer


def test_byte_level_tokens_are_their_bytes() -> None:
    tokenizer = byte_tokenizer()
    text = vocabulary(tokenizer, 264)
    assert text[BOS] == "<bos>" and text[EOS] == "<eos>" and text[260:] == [f"<id {i}>" for i in range(260, 264)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert set(byte_alphabet()) == set(alphabet) and sorted(byte_alphabet().values()) == list(range(256))
    for character, expected in (("a", "a"), (" ", " "), ("\n", "\n"), ("\0", "\0"), ("<", "<")):
        (number,) = tokenizer(character)["input_ids"]
        assert text[number] == expected
    assert [text[i] for i in tokenizer("“é")["input_ids"]] == ["\\xE2", "\\x80", "\\x9C", "\\xC3", "\\xA9"]


def joined(pieces: list[str]) -> bytes:
    """The bytes that a text's tokens stand for, escapes undone."""
    return "".join(pieces).encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")


def test_the_bundled_vocabulary_spells_every_text() -> None:
    tokenizer = load_tokenizer(BUNDLED)
    assert tokenizer is not None
    text = vocabulary(tokenizer, 4096)
    assert len(text) == len(set(text)) == 4096
    source = "def f(x):\n\treturn 'naïve “quotes” 漢字 🙂' + x  # …\r\n"
    ids = tokenizer(source, add_special_tokens=False)["input_ids"]
    raw = b"".join(p.encode() if "\\x" not in p else joined([p]) for p in (text[i] for i in ids))
    assert raw.decode() == source
    whole = [p for p in text if "\\x" not in p]
    assert len(whole) > 3800 and all(tokenizer.decode([text.index(p)]) == p for p in whole[:500])


def test_gpt2(shared: Path) -> None:
    tokenizer = GPT2TokenizerFast.from_pretrained(shared / "tokenizers" / "gpt2")
    text = vocabulary(tokenizer, 50304)
    assert (text[262], text[220], text[198], text[50256]) == (" the", " ", "\n", "<|endoftext|>")
    assert text[50257:] == [f"<id {i}>" for i in range(50257, 50304)]
    assert text[tokenizer("“")["input_ids"][0]] == "\\xE2\\x80"
    for i in range(0, 50256, 97):
        plain = tokenizer.decode([i])
        assert text[i] == plain if "\ufffd" not in plain else "\\x" in text[i]


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama's: spaces as ▁, bytes as <0x0A>, an added token that is not special."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁the", "the", "▁▁", "a"]
    raw = Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    raw.add_special_tokens(["<s>", "</s>"])
    raw.add_tokens(["   "])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_sentencepiece() -> None:
    text = vocabulary(sentencepiece(), 270)
    assert text[:3] == ["<unk>", "<s>", "</s>"]
    assert (text[3 + 0x0A], text[3 + 0x41], text[3 + 0xE2]) == ("\n", "A", "\\xE2")
    assert text[259:] == [" ", " the", "the", "  ", "a", "   ", *(f"<id {i}>" for i in range(265, 270))]


def test_a_real_sentencepiece_model(shared: Path) -> None:
    model = load_model(str(shared / "models" / "stories260K"))
    text = vocabulary(model.tokenizer, model.d_vocab)
    assert len(text) == model.d_vocab and not any("▁" in token or token.startswith("<0x") for token in text)
    story = "Once upon a time, there was a cat."
    ids = model.tokenizer(story, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    assert "".join(text[i] for i in ids).strip() == story


def test_no_tokenizer() -> None:
    assert vocabulary(None, 3) == ["<id 0>", "<id 1>", "<id 2>"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" the", " the"),
        ("é".encode(), "é"),
        (b"\xe2\x80", "\\xE2\\x80"),
        (b" \xe2", " \\xE2"),
        (b"\xff\x00a", "\\xFF\0a"),
        (b"\xed\xa0\x80", "\\xED\\xA0\\x80"),
    ],
)
def test_invalid_bytes_are_written_out(raw: bytes, text: str) -> None:
    assert decoded(raw) == text
