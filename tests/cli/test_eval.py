"""`sae-eval` as a user meets it, on a tiny job: the file it leaves, its tables, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_tools.analysis.evaluation_table import DEFINITIONS
from sae_tools.cli.eval import UNITS, main
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.runs import atomic
from sae_tools.training.run import run_job
from tests.cli.commands import Command, in_process, sentence
from tests.jobs import write_job

SMALL = ("tokens=600", "controls.tokens=100", "probing.labels=python", "probing.per_class=60", "probing.k=[1,3]")
NAMES = ["acts", "update", "logits", "relu"]


@pytest.fixture
def sae_eval(monkeypatch, capfd) -> Command:
    return in_process("sae-eval", main, monkeypatch, capfd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has come to its end; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("trained")
    return run_job(load_config(JobConfig, write_job(folder))).run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "job"))


def test_a_run_gets_its_evaluation(run: Path, sae_eval: Command):
    status, out, err = sae_eval(run, *SMALL)
    assert status == 0, err
    path = run / "analysis" / "evaluation.json"
    assert out.splitlines()[-1] == f"Evaluation: {path}"
    found = atomic.read_json(path)
    (corpus,) = found["corpora"]
    assert corpus["tokens"] >= 600 and corpus["held_out"] and corpus["context_length"] == 32
    assert set(found["dictionaries"]) == set(NAMES)
    fidelity = json.loads((run / "analysis" / "fidelity.json").read_text())
    for name, entry in found["dictionaries"].items():
        assert entry["tokens"] == corpus["tokens"] and entry["training_tokens"] == 3072
        assert set(fidelity[name]) - {"text_passes", "tokens_per_s"} <= set(entry)
        assert entry["controls"]["identity"]["as_known"] and entry["controls"]["silent"]["as_known"]
        assert set(entry["ce"]) == {"original", "reconstruction", "zero", "mean", "resample"}
        assert entry["probing"]["labels"] == "python" and "class: name" in entry["probing"]["tasks"]
        assert entry["fvu"] == pytest.approx(fidelity[name]["fvu"], rel=1e-3)  # the very tokens of training's end
    assert set(found["definitions"]) == set(DEFINITIONS) and "0.0001" in found["definitions"]["alive"]
    for word in ("ev_centred", "CE recovered, resample", "identity", "k=3, random", "with BOS"):
        assert word in out, word
    for stage in UNITS:
        assert stage in err, stage


def test_the_same_again_is_the_same_and_parts_can_be_left_out(run: Path, sae_eval: Command, tmp_path: Path):
    for name in ("a", "b"):
        assert sae_eval(run, *SMALL, "-o", tmp_path / f"{name}.json")[0] == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    status, out, _ = sae_eval(run, "tokens=300", "controls.enabled=false", "probing.enabled=false")
    assert status == 0 and "Controls" not in out and "Probes" not in out
    entries: dict[str, Any] = atomic.read_json(run / "analysis" / "evaluation.json")["dictionaries"]
    assert all("controls" not in entry and "probing" not in entry for entry in entries.values())


def test_probes_without_enough_tokens_are_no_table_of_dashes(run: Path, sae_eval: Command):
    status, out, err = sae_eval(run, "tokens=60", "controls.enabled=false", "probing.labels=python")
    assert status == 0 and "Probes" not in out
    sentence = r"No probing: none of (\d+) labels has 30 tokens with it and 30 without it both in the documents that"
    found = re.search(sentence + r" probes are fitted on \(\d+, (\d+) tokens\) and .* \(\d+, (\d+) tokens\)", err)
    assert found is not None
    entry = atomic.read_json(run / "analysis" / "evaluation.json")["dictionaries"]["acts"]["probing"]
    assert not entry["tasks"] and len(entry["left_out"]) == int(found[1])
    assert (entry["tokens"]["train"], entry["tokens"]["test"]) == (int(found[2]), int(found[3]))


def test_several_runs_and_an_sae_of_others(run: Path, trained: Path, sae_eval: Command, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    alone = Path(shutil.copytree(run / "update" / "checkpoints" / "3072", tmp_path / "alone"))
    for file in ("trainer.safetensors", "space.safetensors"):
        (alone / file).unlink()
    quick = ("tokens=300", "controls.enabled=false", "probing.enabled=false")
    data = json.loads((alone / "cfg.json").read_text())["metadata"]["dataset_path"]
    status, out, err = sae_eval(run, alone, *quick, f"data.source={data}")
    assert status == 0, err
    assert out.splitlines()[-1] == "Evaluation: evaluation.json"
    found = atomic.read_json(tmp_path / "evaluation.json")
    assert len(found["dictionaries"]) == 5 and not all(corpus["held_out"] for corpus in found["corpora"])
    assert any(name.endswith("alone") for name in found["dictionaries"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nothing"], "nothing does not exist"),
        (["{run}", "tokens"], "'tokens' is a setting, and settings are written tokens=VALUE"),
        (["{run}", "=5"], "names no setting"),
        (["{run}", "tokns=5"], "did you mean 'tokens'"),
        (["{run}", "probing.k=[0]"], "a probe uses at least one feature"),
        (["{run}", "probing.k=[]"], "probing.k"),
        (["{run}", "tokens=none"], "tokens: expected an integer"),
        (["tokens=5"], "needs a run"),
        (["{run}", "-o", "{tmp}"], "is a folder; name a file"),
        (["{run}", "-o", "{run}/config.yaml/x.json"], "nothing can be written to"),
        (["{run}", "site=mlp_out@1"], "is for an SAE that is no run of ours"),
    ],
)
def test_one_sentence_for_every_mistake(trained: Path, sae_eval: Command, tmp_path: Path, arguments, said: str):
    filled = [argument.format(run=trained, tmp=tmp_path) for argument in arguments]
    assert said in sentence(sae_eval(*filled), "sae-eval")
    assert not (trained / "analysis" / "evaluation.json").exists()


def test_what_is_no_evaluation_is_not_replaced(run: Path, sae_eval: Command):
    path = run / "analysis" / "evaluation.json"
    path.write_text("{}")
    assert "is no evaluation of sae_tools" in sentence(sae_eval(run, "tokens=300"), "sae-eval")
    assert path.read_text() == "{}"


def test_an_interrupted_one_leaves_nothing(run: Path, sae_eval: Command, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_tools.analysis.evaluation.measure_controls", stop)
    status, out, err = sae_eval(run, *SMALL)
    assert status == 130 and "Nothing was written" in err and "Traceback" not in err and out == ""
    assert {path.name for path in (run / "analysis").iterdir()} == {"fidelity.json"}


def test_help_is_quick_and_its_example_is_a_command():
    code = "import sys; sys.argv = ['sae-eval', '--help']\nfrom sae_tools.cli.eval import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    (example,) = re.findall(r"Example: (sae-eval .*)", done.stdout)
    assert example.split()[:2] == ["sae-eval", "runs/quickstart"]
