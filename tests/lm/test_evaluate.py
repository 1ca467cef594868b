"""`sae-lm evaluate`: the same tokens for the model and the n-grams, and losses that are right."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sae_tools.cli.lm import app
from sae_tools.config import LMEvaluationConfig
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from sae_tools.lm.evaluate import evaluate_lm
from sae_tools.models.load import load_model
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    draw = random.Random(0)
    lines = ["".join(draw.choice(["ab", "abc", "d e", " é"]) for _ in range(60)) for _ in range(80)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def config(corpus: Path, **changes) -> LMEvaluationConfig:
    tree = {
        "model": {"name": str(tiny_model())},
        "data": {"source": str(corpus), "context_length": 32, "heldout": 0.3},
        "tokens": 900,
        "device": "cpu",
    }
    return LMEvaluationConfig.model_validate({**tree, **changes})


def test_loss_is_the_models_own(corpus: Path):
    cfg = config(corpus, ngrams=False, batch_size=7)
    result = evaluate_lm(cfg)
    assert "bigram" not in result
    model = load_model(str(tiny_model()))
    wanted = math.ceil(900 / 31)
    tokens = next(ContextStream(cfg.data, model.tokenizer, split="heldout", batch=wanted)).tokens
    assert result["tokens"] == tokens[:, 1:].numel() == wanted * 31
    plain = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    expected = F.cross_entropy(plain(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert result["loss"] == pytest.approx(expected.item(), rel=1e-5)
    # A byte tokenizer: a token is a byte, but for the BOS that join documents and have no text.
    joins = (tokens[:, 1:] == model.bos_token_id).sum().item()
    bits = result["loss"] / math.log(2) * tokens[:, 1:].numel() / (tokens[:, 1:].numel() - joins)
    assert result["bits_per_byte"] == pytest.approx(bits, rel=0.02)  # cut characters decode to other bytes


def test_ngrams_know_the_training_part(corpus: Path, tmp_path: Path):
    result = evaluate_lm(config(corpus))
    assert result["trigram"] < result["bigram"] < result["unigram"] < math.log(264)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "zzzz " * 200}) + "\n")
    elsewhere = evaluate_lm(config(corpus, ngram_source=str(other)))
    assert elsewhere["loss"] == result["loss"] and elsewhere["bigram"] > result["bigram"]
    assert 0 < elsewhere["ngram_tokens"] < result["ngram_tokens"]


def test_command(corpus: Path):
    arguments = [
        "evaluate",
        str(tiny_model()),
        f"data.source={corpus}",
        "data.context_length=32",
        "data.heldout=0.3",
        "tokens=300",
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "bits per byte" in shown.output and "trigrams" in shown.output
    as_json = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert f"{as_json['loss']:.4f}" in shown.output


def test_contexts_longer_than_the_model_reads_are_refused(corpus: Path):
    with pytest.raises(UserError, match="context_length is 300, but .* reads at most 64"):
        evaluate_lm(config(corpus, data={"source": str(corpus), "context_length": 300}))
