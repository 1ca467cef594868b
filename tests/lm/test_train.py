"""`sae-lm train` through its command: from text to a model that others load, and the same after an interruption."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_tools.cli.lm import main
from sae_tools.config import LMConfig
from sae_tools.errors import UserError
from sae_tools.lm.run import resume_run
from sae_tools.lm.train import train_lm, train_step
from sae_tools.models.load import load_model
from sae_tools.tracking.metrics import read_metrics, without_time

WORDS = [f"{a}{b}" for a in ("red", "green", "blue", "old") for b in ("fish", "tree", "stone", "bird")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in which a word tells the next one: something to learn within some hundred steps."""
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(300):
            start, step = draw.randrange(16), draw.choice([1, 3])
            words = [WORDS[(start + step * j) % 16] for j in range(40)]
            file.write(json.dumps({"text": f"Story {i}: " + " ".join(words) + ".\n"}) + "\n")
    return path


def job(corpus: Path, runs: Path, **changes) -> dict:
    tree = {
        "name": "tiny",
        "runs_dir": str(runs),
        "data": {"source": str(corpus), "heldout": 0.1, "shuffle_characters": 20_000},
        "architecture": {"n_layers": 2, "d_model": 32, "n_heads": 2, "context_length": 24},
        "tokenizer": {"vocabulary": 320},
        "training": {
            "tokens": 24 * 8 * 40,
            "batch_size": 8,
            "lr": 1e-2,
            "warmup_steps": 4,
            "log_every": 10,
            "heldout_every": 20,
            "heldout_tokens": 1000,
            "checkpoint_first_step": 8,
            "save_every": 16,
            "threads": 1,
            "device": "cpu",
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return tree


def config(corpus: Path, runs: Path, **changes) -> LMConfig:
    return LMConfig.model_validate(job(corpus, runs, **changes))


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sae_tools.cli.lm", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = max((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    return load_file(checkpoint / "model.safetensors")


def test_command_trains_a_model_that_others_load(corpus: Path, tmp_path: Path):
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(job(corpus, tmp_path / "runs")))
    done = command("train", tmp_path / "lm.yaml", "name=first", "training.autocast=bfloat16")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "first"
    per_step = 24 * 8
    assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [s * per_step for s in (0, 8, 16, 32, 40)]
    records = read_metrics(run / "metrics.jsonl")
    assert [r["step"] for r in records] == [10, 20, 30, 40]
    assert [r["step"] for r in records if "heldout_loss" in r] == [20, 40]
    assert f"Held-out loss {records[-1]['heldout_loss']:.4f} after {40 * per_step:,} tokens" in done.stdout
    assert records[-1]["heldout_loss"] < records[1]["heldout_loss"] < 5.7  # ln 320 = 5.77, untrained

    checkpoint = run / "checkpoints" / str(40 * per_step)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert model.config.vocab_size == len(tokenizer) == 320
    assert model.config.bos_token_id == model.config.eos_token_id == tokenizer.bos_token_id
    text = "Story 1: redfish\n    redtree"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ours = load_model(checkpoint)
    tokens = torch.randint(1, 320, (2, 24), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours.bridge(tokens), model(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind: str, corpus: Path, tmp_path: Path):
    whole = train_lm(config(corpus, tmp_path / "whole", architecture__kind=kind))
    cfg = config(corpus, tmp_path / "parts", architecture__kind=kind)
    stops = iter([False] * 12 + [True] + [False] * 9 + [True])  # after 13 steps and after 23
    run = train_lm(cfg, should_stop=lambda: next(stops))
    assert run.step == 13 and not run.finished
    run = train_lm(cfg, resume=run.folder, should_stop=lambda: next(stops))
    assert run.step == 23 and not run.finished
    run = train_lm(cfg, resume=run.folder)
    assert run.finished and run.stream.digest == whole.stream.digest
    expected, found = last_weights(whole.folder), last_weights(run.folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # The interruptions cut two laps, so the means differ at steps 20 and 30 and nowhere else.
    a, b = (without_time(read_metrics(r.directory.metrics)) for r in (whole, run))
    assert [r["step"] for r in b] == [r["step"] for r in a] and b[0] == a[0] and b[-1] == a[-1]
    assert isinstance(AutoModelForCausalLM.from_pretrained(run.checkpoint()), torch.nn.Module)


def test_another_seed_gives_another_model_and_the_same_seed_the_same(corpus: Path, tmp_path: Path):
    short = {"training__tokens": 24 * 8 * 3}
    runs = [train_lm(config(corpus, tmp_path, seed=seed, **short)) for seed in (0, 0, 1)]
    assert [run.folder.name for run in runs] == ["tiny", "tiny-2", "tiny-3"]
    a, b, c = (last_weights(run.folder)["transformer.wte.weight"] for run in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_every_position_is_trained(corpus: Path, tmp_path: Path):
    run = train_lm(config(corpus, tmp_path, training__tokens=24 * 8 * 2, training__weight_decay=0.0))
    before = load_file(run.folder / "checkpoints" / "0" / "model.safetensors")["transformer.wpe.weight"]
    after = last_weights(run.folder)["transformer.wpe.weight"]
    assert (before != after).any(dim=1).all()


def test_resume_may_shorten_the_schedule_and_nothing_else(corpus: Path, tmp_path: Path):
    cfg = config(corpus, tmp_path)
    stops = iter([False] * 9 + [True])
    run = train_lm(cfg, should_stop=lambda: next(stops))
    with pytest.raises(UserError, match="training.lr is 0.5, but the run has 0.01"):
        resume_run(run.folder, config(corpus, tmp_path, training__lr=0.5))
    short = train_lm(config(corpus, tmp_path, training__tokens=24 * 8 * 20), resume=run.folder)
    last = read_metrics(short.directory.metrics)[-1]
    assert last["step"] == 20 and last["lr"] == pytest.approx(0.05 * 1e-2)


def test_sigterm_saves_and_says_how_to_go_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(job(corpus, tmp_path / "runs")))

    def step_that_is_interrupted(run):
        if run.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run)

    monkeypatch.setattr("sae_tools.lm.train.train_step", step_that_is_interrupted)
    monkeypatch.setattr(sys, "argv", ["sae-lm", "train", str(tmp_path / "lm.yaml")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    run = tmp_path / "runs" / "tiny"
    assert f"To go on: sae-lm train --resume {run}" in capsys.readouterr().out
    monkeypatch.setattr("sae_tools.lm.train.train_step", train_step)
    monkeypatch.setattr(sys, "argv", ["sae-lm", "train", "--resume", str(run), f"training.tokens={24 * 8 * 30}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [10, 20, 30]


def test_loss_that_is_not_finite_stops_before_anything_is_saved(corpus: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"not finite at step \d+; what was last saved"):
        train_lm(config(corpus, tmp_path, training__lr=1e30, training__clip_norm=1e30, training__warmup_steps=0))
    saved = load_file(tmp_path / "tiny" / "trainer.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.source=/no/such/file", "'/no/such/file' does not exist"),
        ("tokenizer.vocabulary=30_000", "tokenizer.vocabulary: expected a text that gives 30000 tokens"),
        ("architecture.d_model=33", "architecture.d_model: expected a multiple of 2"),
        ("tokenizer.path=/no/tokenizer", "tokenizer.path: /no/tokenizer does not exist"),
        ("training.device=cuda:99", "training.device: cuda:99 was asked for"),
        ("data.heldout=0", "held-out part"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_run_behind(change: str, message: str, corpus: Path, tmp_path: Path):
    from sae_tools.config_loading import load_config

    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(job(corpus, tmp_path / "runs")))
    with pytest.raises(UserError, match=message):
        train_lm(load_config(LMConfig, tmp_path / "lm.yaml", [change]))
    assert not (tmp_path / "runs").exists()


def test_command_exits_with_2_for_a_mistake(tmp_path: Path):
    done = command("train", "--resume", tmp_path / "nothing")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "nothing" in done.stderr


def test_a_damaged_state_is_refused(corpus: Path, tmp_path: Path):
    cfg = config(corpus, tmp_path, training__tokens=24 * 8)
    run = train_lm(cfg)
    state = run.folder / "trainer.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(UserError, match="truncated"):
        resume_run(run.folder, cfg)


def test_changed_data_is_refused(corpus: Path, tmp_path: Path):
    text = tmp_path / "text.jsonl"
    text.write_bytes(corpus.read_bytes())
    cfg = config(text, tmp_path / "runs", training__tokens=24 * 8)
    run = train_lm(cfg)
    with text.open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UserError, match="its text is not the one"):
        resume_run(run.folder, cfg)
