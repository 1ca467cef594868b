"""The text of every token of a vocabulary, as it stands in a document: with its leading space, without a tokenizer's
own writing (`Ġthe`, `▁the`, `<0x0A>`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A sentencepiece vocabulary's token for a single byte."""
SPACE = "▁"
"""Sentencepiece's space."""


def vocabulary(tokenizer: Any | None, d_vocab: int) -> list[str]:
    """The text of the tokens 0 to d_vocab - 1.

    tokenizer: a Hugging Face tokenizer of any kind, or None.

    Special and other added tokens are as they are named. Bytes that are no valid UTF-8 by themselves (a token may hold
    a part of a character) are written `\\xE2`. An id that the tokenizer lacks, as in a padded vocabulary, is
    `<id 50300>`, and so are all where there is no tokenizer.
    """
    if tokenizer is None:
        return [f"<id {i}>" for i in range(d_vocab)]
    pieces = {i: piece for piece, i in tokenizer.get_vocab().items()}
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    text = _reader(tokenizer)
    return [added.get(i) or (text(pieces[i]) if i in pieces else f"<id {i}>") for i in range(d_vocab)]


def _reader(tokenizer: Any) -> Callable[[str], str]:
    """From the tokenizer's writing of a token to its text."""
    if "ByteLevel" in _decoder_kinds(tokenizer) or hasattr(tokenizer, "byte_decoder"):
        byte_of = byte_alphabet()
        return lambda piece: _from_bytes(piece, byte_of)

    def sentencepiece(piece: str) -> str:
        byte = BYTE.fullmatch(piece)
        return decoded(bytes([int(byte[1], 16)])) if byte else piece.replace(SPACE, " ")

    return sentencepiece


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Types of the steps that make text of tokens; empty for a tokenizer written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = None if backend is None else json.loads(backend.to_str()).get("decoder")
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    return {step["type"] for step in steps}


def byte_alphabet() -> dict[str, int]:
    """The byte behind each character of GPT-2's byte-level BPE: bytes that print stand for themselves, the others, in
    order, for the characters from 256 on (`bytes_to_unicode` in openai/gpt-2, src/encoder.py)."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_bytes(piece: str, byte_of: dict[str, int]) -> str:
    if not all(character in byte_of for character in piece):
        return piece
    return decoded(bytes(byte_of[character] for character in piece))


def decoded(raw: bytes) -> str:
    """UTF-8 as text, each byte that is none as `\\xE2`."""
    text = raw.decode("utf-8", errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02X}", text)
