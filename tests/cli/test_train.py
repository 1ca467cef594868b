"""`sae-train` as a user meets it: what it leaves behind, and one sentence with exit status 2 for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_tools.cli.train import main
from sae_tools.runs.density import merge_windows, read_windows
from tests.cli.commands import Command, in_process, sentence
from tests.jobs import write_job
from tests.tiny_models import tiny_model


@pytest.fixture
def sae_train(monkeypatch, capfd) -> Command:
    return in_process("sae-train", main, monkeypatch, capfd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that has come to its end."""
    from sae_tools.config import JobConfig
    from sae_tools.config_loading import load_config
    from sae_tools.training.run import run_job

    folder = tmp_path_factory.mktemp("finished")
    return run_job(load_config(JobConfig, write_job(folder))).run.path


def test_what_a_run_leaves_behind(finished: Path):
    assert {p.name for p in finished.iterdir()} - {".lock"} == {
        "config.yaml", "metrics.jsonl", "state", "analysis", "acts", "update", "logits", "relu",
    }  # fmt: skip
    for name in ("acts", "update", "logits", "relu"):
        assert sorted(int(p.name) for p in (finished / name / "checkpoints").iterdir()) == [0, 1024, 2048, 3072]
        last = finished / name / "checkpoints" / "3072"
        assert {p.name for p in last.iterdir()} == {
            "cfg.json", "sae_weights.safetensors", "space.safetensors", "trainer.safetensors",
        }  # fmt: skip
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [5, 10, 15, 20, 24]
    first, last = (records[i]["dictionaries"]["update"] for i in (0, -1))
    assert last["squared_error"] < first["squared_error"]
    fidelity = json.loads((finished / "analysis" / "fidelity.json").read_text())
    assert set(fidelity) == {"acts", "update", "logits", "relu"}
    keys = {"tokens", "l0", "fvu", "ce", "ce_recovered", "kl", "dead", "ultra_rare", "dense", "tokens_per_s"}
    assert all(keys <= set(entry) for entry in fidelity.values())


def test_density_history_covers_all_of_training(finished: Path):
    """Every token of every step is in exactly one window, and counts are what a TopK with positive values must give."""
    for name in ("acts", "update", "logits", "relu"):
        windows = read_windows(finished / name / "density")
        assert [(w.start, w.end) for w in windows] == [(i * 512, (i + 1) * 512) for i in range(6)]
        everything = merge_windows(windows)
        assert everything.tokens == 3072
        assert int(everything.fires.max()) <= 3072
        assert bool(((everything.last_fired >= 0) == (everything.fires > 0)).all())
    total = int(merge_windows(read_windows(finished / "update" / "density")).fires.sum())
    assert 0.9 * 3072 * 4 <= total <= 3072 * 4


def test_the_resolved_configuration_makes_the_same_run(finished: Path, sae_train: Command, tmp_path: Path):
    status, _, err = sae_train(finished / "config.yaml", f"runs_dir={tmp_path}")
    assert status == 0, err
    runs = (finished, tmp_path / "job")
    a, b = (load_file(run / "logits" / "checkpoints" / "3072" / "sae_weights.safetensors") for run in runs)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_taken_name_gets_the_next_number(sae_train: Command, tmp_path: Path):
    job = write_job(tmp_path)
    small = ["training.tokens=256", "fidelity.tokens=100"]
    assert sae_train(job, *small)[0] == 0
    status, out, _ = sae_train(job, *small)
    assert status == 0 and "job-2" in out
    assert (tmp_path / "runs" / "job-2" / "analysis" / "fidelity.json").exists()


def test_the_table_is_on_stdout_and_progress_is_not(sae_train: Command, tmp_path: Path):
    status, out, err = sae_train(write_job(tmp_path), "training.tokens=256", "fidelity.tokens=100")
    assert status == 0, err
    for word in ("FVU in logit_update", "CE recovered, mean ablation", "ultra-rare", "fidelity.json"):
        assert word in out
    assert "CE recovered" not in err


def test_dry_run_trains_nothing(sae_train: Command, tmp_path: Path):
    status, out, err = sae_train(write_job(tmp_path), "--dry-run")
    assert status == 0, err
    for word in ("parameters", "memory", "FLOPs", "tokens", "acts", "logits"):
        assert word in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.token=5"], r"training\.token.*training\.tokens"),
        (["dictionaries.acts.architecture.k=65"], r"k is 65.* 64"),
        (["dictionaries.acts.site=mlp_acts@7"], r"mlp_acts@7.*mlp_acts@2"),
        (["dictionaries.acts.site=mlp_act@1"], r"mlp_act@1.*mlp_acts@1"),
        (["dictionaries.acts.site=resid_post@1"], r"mlp_acts.*resid_post@1"),
        (["data.source=/nowhere/at/all.jsonl"], r"/nowhere/at/all\.jsonl"),
        (["data.text_column=body"], r"body"),
        (["data.context_length=4096"], r"4096.*64"),
        (["model.name=/nowhere/model"], r"/nowhere/model"),
        (["training.device=abacus"], r"abacus"),
        (["data.heldout=1.0"], r"train"),
        (["data.heldout=0"], r"held-out part"),
    ],
)
def test_mistakes_in_the_settings(sae_train: Command, tmp_path: Path, overrides: list[str], said: str):
    message = sentence(sae_train(write_job(tmp_path), *overrides))
    assert re.search(said, message), message
    assert not list((tmp_path / "runs").glob("*")), "a run that never began left a folder"


def test_dry_run_refuses_what_the_run_would(sae_train: Command, tmp_path: Path):
    for override in ("dictionaries.acts.space.kind=resid", "dictionaries.acts.site=mlp_acts@7"):
        dry = sentence(sae_train(write_job(tmp_path), override, "--dry-run"))
        assert dry == sentence(sae_train(write_job(tmp_path), override))


def test_held_out_figures_count_what_was_asked_for(finished: Path):
    """Whole contexts of 31 rows: at most one more than the 600 tokens need."""
    fidelity = json.loads((finished / "analysis" / "fidelity.json").read_text())
    assert all(600 <= entry["tokens"] <= 631 for entry in fidelity.values())
    assert all(entry["text_passes"] == 1 for entry in fidelity.values())


def test_missing_configuration(sae_train: Command, tmp_path: Path):
    assert "none.yaml" in sentence(sae_train(tmp_path / "none.yaml"))
    assert "configuration" in sentence(sae_train())


def test_empty_corpus(sae_train: Command, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    message = sentence(sae_train(write_job(tmp_path), f"data.source={tmp_path}/empty.jsonl"))
    assert "empty.jsonl" in message
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n')
    assert "not enough" in sentence(sae_train(write_job(tmp_path), f"data.source={tmp_path}/short.jsonl"))


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that may be damaged, taken back to its second-newest checkpoint."""
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    (run / ".lock").unlink(missing_ok=True)
    return run


def test_resume_of_what_is_no_run(sae_train: Command, tmp_path: Path):
    assert "nothing-here" in sentence(sae_train("--resume", tmp_path / "nothing-here"))
    (tmp_path / "folder").mkdir()
    assert "folder" in sentence(sae_train("--resume", tmp_path / "folder"))


def test_resume_with_another_configuration(sae_train: Command, copy: Path, tmp_path: Path):
    (tmp_path / "job.yaml").write_text((copy / "config.yaml").read_text())
    message = sentence(sae_train(tmp_path / "job.yaml", "training.lr=0.01", "name=copy", "--resume", copy))
    assert "training.lr" in message and "0.01" in message and "0.003" in message


def test_resume_with_another_model(sae_train: Command, copy: Path):
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(tiny_model("gpt2")), str(tiny_model("gpt2", seed=5))))
    assert "weights_fingerprint" in sentence(sae_train("--resume", copy))


@pytest.mark.parametrize("file", ["trainer.safetensors", "space.safetensors"])
def test_truncated_checkpoint(sae_train: Command, copy: Path, file: str):
    path = copy / "update" / "checkpoints" / "3072" / file
    path.write_bytes(path.read_bytes()[:-100])
    before = sorted(p for p in copy.rglob("*"))
    message = sentence(sae_train("--resume", copy))
    assert file in message
    assert sorted(p for p in copy.rglob("*") if p.name != ".lock") == [p for p in before if p.name != ".lock"]


def test_foreign_checkpoint(sae_train: Command, copy: Path):
    """Right size, wrong content: another program's tensors, then another dictionary's."""
    path = copy / "update" / "checkpoints" / "3072" / "trainer.safetensors"
    size = path.stat().st_size
    save_file({"weight": torch.zeros(3)}, path)
    with path.open("ab") as file:
        file.write(b"\0" * (size - path.stat().st_size))
    assert "trainer.safetensors" in sentence(sae_train("--resume", copy))
    other = copy / "relu" / "checkpoints" / "3072" / "trainer.safetensors"
    shutil.copy(other, path)
    assert "trainer.safetensors" in sentence(sae_train("--resume", copy))


def test_no_space_left(sae_train: Command, tmp_path: Path, monkeypatch):
    """The disk fills while the second checkpoint is written; nothing written before is lost, and the run goes on."""
    job, fsync, calls = write_job(tmp_path), os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left" in sentence(sae_train(job)).lower()
    run = tmp_path / "runs" / "job"
    assert (run / "acts" / "checkpoints" / "0" / "trainer.safetensors").exists()
    monkeypatch.setattr(os, "fsync", fsync)
    status, _, err = sae_train("--resume", run)
    assert status == 0, err
    assert (run / "analysis" / "fidelity.json").exists()


def test_a_loss_that_explodes_stops_the_run_with_the_last_good_state(sae_train: Command, tmp_path: Path):
    job = write_job(tmp_path, dictionaries__update__lr=1e25, training__clip_norm=None)
    message = sentence(sae_train(job))
    match = re.search(r"step (\d+) in dictionary 'update' \(site mlp_out@1\)", message)
    assert match, message
    step = int(match[1])
    for name in ("acts", "update"):
        checkpoint = tmp_path / "runs" / "job" / name / "checkpoints" / str((step - 1) * 128)
        weights = load_file(checkpoint / "sae_weights.safetensors")
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    # Resuming meets the same bad step again, and says so again.
    assert f"step {step} in dictionary 'update'" in sentence(sae_train("--resume", tmp_path / "runs" / "job"))


def test_activations_that_are_not_finite_name_the_site(sae_train: Command, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model("gpt2"), model)
    weights = load_file(model / "model.safetensors")
    positions = next(name for name in weights if name.endswith("wpe.weight"))
    weights[positions][20] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    message = sentence(sae_train(write_job(tmp_path), f"model.name={model}"))
    assert "mlp_acts@1" in message and "NaN" in message, message
