"""The bundled model is what its card says, on the card's own text."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_tools.config import DataConfig
from sae_tools.data.sources import open_documents
from sae_tools.lm.evaluate import model_loss
from sae_tools.models.load import load_model
from sae_tools.models.locate import BUNDLED


@pytest.fixture(scope="module")
def card() -> str:
    return (BUNDLED / "README.md").read_text()


def test_it_is_small_and_no_pickle():
    assert {path.suffix for path in BUNDLED.iterdir()} <= {".json", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in BUNDLED.glob("*.safetensors")) <= 10_000_000
    with safe_open(BUNDLED / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


def test_it_has_the_shape_that_was_asked_for():
    model = load_model("bundled")
    assert model.kind == "bundled" and model.n_layers >= 4 and 128 <= model.d_model <= 256
    assert model.n_ctx == 256 and model.d_vocab == len(model.tokenizer) == 4096
    assert model.bos_token_id == model.tokenizer.bos_token_id


def test_it_beats_the_cards_ngrams_by_what_was_asked(card: str):
    """On the beginnings of many held-out files of this interpreter's library, whichever version that is."""
    written = re.search(r"python-stdlib \| [\d,]+ \| \*\*([\d.]+)\*\* \| ([\d.]+) \| ([\d.]+)", card)
    assert written, "the card has no figures"
    loss, trigram, bigram = map(float, written.groups())
    assert loss < bigram - 0.8 and loss < trigram
    model = load_model("bundled")
    heldout = open_documents(DataConfig(), split="heldout")
    ids = [model.tokenizer(document.text)["input_ids"][:255] for document in iter(heldout.read, None)]
    tokens = torch.tensor([[model.bos_token_id, *row] for row in ids if len(row) == 255][:60])
    assert len(tokens) > 20
    assert model_loss(model, tokens, batch=20) < min(bigram - 0.8, trigram)


def test_it_writes_python():
    """What follows is the one continuation that the syntax or the idiom leaves."""
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    for prompt, continuation in {
        "class Stack:\n    def __init__(": "self",
        "import numpy as": " np\n",
        "with open(path) as": " f:\n",
        "class TestFoo(unittest.": "TestCase):",
        "if __name__ ==": " '__main__':",
        "for i, x in": " enumerate(",
        "assert x is not": " None",
        "except KeyError": ":\n",
    }.items():
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt)["input_ids"]]])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        found = tokenizer.decode(out[0, ids.shape[1] :]).replace('"', "'")
        assert found.startswith(continuation), (prompt, found)
