"""Encoding in batches gives what the tokenizer gives, text by text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, GPT2TokenizerFast

from sae_tools.data.tokens import encoder
from tests.tiny_models import byte_tokenizer

TEXTS = ["def f(x):\n        return  x\n", "", "naïve – “quotes”", " leading space", "\n\n", "Once upon a time, " * 50]


def test_real_tokenizers(shared: Path):
    gpt2 = GPT2TokenizerFast.from_pretrained(shared / "tokenizers" / "gpt2")
    llama = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    for tokenizer in (gpt2, llama):
        found = encoder(tokenizer)(TEXTS)
        for text, ids in zip(TEXTS, found, strict=True):
            assert ids.dtype == np.int32 and ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_settings_of_the_tokenizer_stay_and_do_not_matter():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    (ids,) = encoder(tokenizer)(["longer than three"])
    assert len(ids) == len("longer than three")
    assert tokenizer.backend_tokenizer.truncation is not None
    assert not tokenizer.backend_tokenizer.encode_special_tokens


def test_a_tokenizer_without_a_fast_part():
    class Slow:
        def __call__(self, texts, *, add_special_tokens, split_special_tokens, verbose):
            assert not add_special_tokens and split_special_tokens
            return {"input_ids": [[ord(character) for character in text] for text in texts]}

    assert [row.tolist() for row in encoder(Slow())(["ab", "c"])] == [[97, 98], [99]]


def test_batches_of_any_size_keep_the_order():
    texts = [f"{i} " + "x" * 400_000 * (i % 3) for i in range(7)]
    assert [len(ids) for ids in encoder(byte_tokenizer())(texts)] == [len(text) for text in texts]
