"""A model, a tokenizer and a corpus that try to become code, to reorder text, or to vanish.

The payloads set `window.canary` if anything of them runs, and ask for an image that must never be asked for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import VOCABULARY, tiny_model

CLOSING = "</script><img/src='x'/onerror='window.canary=1'>"
"""Without a space: tokens are shown cut at their spaces."""
COMMENT = "<!--<script>window.canary=1</script>"
REVERSED = "\u202egnp\u2066.\u2028\u200bexe"
LONG = "Donaudampfschifffahrts" * 40
ATTRIBUTE = "\"'><svg/onload=window.canary=1>]]>"
TOKENS = [CLOSING, COMMENT, REVERSED, LONG, ATTRIBUTE]
"""As many as the tiny model's vocabulary has room for: each is one token of the tokenizer."""
INVISIBLE = "\x00\x01\x08\x1b[31m\x7f\x85\xa0\xad\u200d\u200e\u202a\u2060\u3000\ufeff\ufffe\U000e0041"
TEXTS = [
    *TOKENS,
    INVISIBLE,
    "</script><img src=x onerror=window.canary=1>",
    "<iframe srcdoc='<script>parent.canary=1</script>'></iframe><base href=//evil.example>",
    "<style>*{display:none}</style><meta http-equiv=refresh content=0;url=//evil.example>",
    "javascript:window.canary=1//&lt;b&gt;&amp;{{7*7}}${7*7}<%=7*7%>`${window.canary=1}`",
    "e\u0301\u0327 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u05d0\u05d1\u05d2 \u0661\u0662 Z\u0351\u036b\u0343",
]
FOLDER = "<"
NAME = "script><img src=x onerror=window.canary=1>&{{7*7}}"
"""Together `</script><img …>`, as far as a path can say that."""
CARD = f"# Card\n\n{CLOSING}\n{COMMENT}\n[link](javascript:window.canary=1)\n![](http://evil.example/pixel.png)\n{REVERSED}"


def hostile_model(folder: Path) -> Path:
    """The tiny GPT-2 with TOKENS in its vocabulary, under a name and with a card that are no better."""
    path = folder / FOLDER / NAME
    shutil.copytree(tiny_model("gpt2"), path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    assert tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TOKENS]) == len(TOKENS)
    assert len(tokenizer) == VOCABULARY
    tokenizer.save_pretrained(path)
    (path / "README.md").write_text(CARD)
    return path


def hostile_corpus(folder: Path, documents: int = 150) -> Path:
    """Documents of all TEXTS, in every order, with plain words between them."""
    path = folder / f"{NAME}.jsonl"
    with path.open("w") as file:
        for i in range(documents):
            texts = [TEXTS[(i * step + j) % len(TEXTS)] for j, step in enumerate([1, 3, 7, 9, 1, 3, 7, 9])]
            words = [f" word{(i * 31 + j) % 17} " for j in range(len(texts))]
            file.write(json.dumps({"text": "".join(map("".join, zip(texts, words, strict=True))) + str(i)}) + "\n")
    return path
