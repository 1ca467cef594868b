"""`sae-report` as a user meets it, on a tiny job: the page it leaves, and one sentence for every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from sae_tools.cli.report import UNITS, main
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.report.build import held_out
from sae_tools.report.columns import decode, unpack
from sae_tools.report.marker import MARKER, is_report
from sae_tools.training.run import run_job
from tests.cli.commands import Command, in_process
from tests.jobs import write_job

SMALL = ("tokens=600", "chunk=32")
BLOB = re.compile(r'<script type="application/octet-stream" data-blob="([^"]+)">([A-Za-z0-9+/=]*)</script>')


@pytest.fixture
def sae_report(monkeypatch, capfd) -> Command:
    return in_process("sae-report", main, monkeypatch, capfd)


def sentence(result: tuple[int, str, str]) -> str:
    """The one sentence of a mistake: exit status 2, nothing else on stderr, no traceback."""
    status, out, err = result
    assert status == 2, err
    assert out == "" and err.count("\n") == 1 and err.startswith("sae-report: ") and "Traceback" not in err, err
    return err.removeprefix("sae-report: ").rstrip("\n")


def blobs_of(page: Path) -> dict[str, tuple[dict, dict]]:
    return {name: unpack(decode(text)) for name, text in BLOB.findall(page.read_text())}


def lone_sae(run: Path, folder: Path) -> Path:
    """A checkpoint taken out of its run, with only what SAELens reads."""
    alone = Path(shutil.copytree(run / "update" / "checkpoints" / "3072", folder / "alone"))
    for file in ("trainer.safetensors", "space.safetensors"):
        (alone / file).unlink()
    return alone


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has come to its end; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("trained")
    return run_job(load_config(JobConfig, write_job(folder))).run.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "job"))


def test_one_run_gets_its_page(run: Path, sae_report: Command):
    status, out, err = sae_report(run, *SMALL)
    assert status == 0, err
    assert out == f"Report: {run / 'report.html'}\n"
    found = blobs_of(run / "report.html")
    meta = found["report"][1]["meta"]
    assert [entry["id"] for entry in meta["dictionaries"]] == ["acts", "update", "logits", "relu"]
    for entry in meta["dictionaries"]:
        assert entry["training_tokens"] == 3072 and entry["has_density"] and entry["tokens"] >= 600
        fires = load_file(run / "analysis" / "features" / f"{entry['id']}.safetensors")["fires"]
        assert entry["l0"] == pytest.approx(fires.mean() * entry["d_sae"] / entry["tokens"]) and entry["l0"] > 0
        assert found[f"dictionary/{entry['id']}"][0]["features.fires"].shape == (entry["d_sae"],)
        assert found[f"density/{entry['id']}"][0]["density.fires"].shape == (6, entry["d_sae"])
    fidelity = json.loads((run / "analysis" / "fidelity.json").read_text())
    assert found["report"][1]["fidelity"]["entries"] == fidelity
    assert {path.name for path in (run / "analysis" / "features").iterdir()} - {".lock"} == {
        "acts.safetensors", "update.safetensors", "logits.safetensors", "relu.safetensors", "corpus-0.safetensors",
        "vocabulary-0.json",
    }  # fmt: skip


def test_the_same_run_gives_the_same_bytes(run: Path, sae_report: Command, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert sae_report(run, *SMALL)[0] == 0
    first = (run / "report.html").read_bytes()
    shutil.rmtree(run / "analysis" / "features")
    assert sae_report(run, *SMALL, "-o", tmp_path / "again.html")[0] == 0
    assert (tmp_path / "again.html").read_bytes() == first
    assert blobs_of(run / "report.html")["report"][1]["meta"]["created"] == "2023-11-14T22:13:20Z"


def test_what_is_measured_is_not_measured_again(run: Path, sae_report: Command):
    """Another page from the same features leaves their files alone; a damaged one is made again, the same."""
    assert sae_report(run, *SMALL)[0] == 0
    files = {path: path.stat().st_mtime_ns for path in (run / "analysis" / "features").glob("*.safetensors")}
    damaged = run / "analysis" / "features" / "update.safetensors"
    content = damaged.read_bytes()
    assert sae_report(run, "tokens=600", "chunk=16")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "features/update/3" in blobs_of(run / "report.html")
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert sae_report(run, *SMALL)[0] == 0
    assert damaged.read_bytes() == content


def test_no_path_of_this_machine_that_the_configuration_does_not_hold(run: Path, sae_report: Command):
    assert sae_report(run, *SMALL)[0] == 0
    config = (run / "config.yaml").read_text()
    page = (run / "report.html").read_text()
    texts = [page, *(json.dumps(values) for _, values in blobs_of(run / "report.html").values())]
    found = {path for text in texts for path in re.findall(r"/(?:home|root|tmp|Users|work)/[^\s\"'\\]*", text)}
    assert found and all(path in config for path in found), found


def test_several_runs_stand_side_by_side(run: Path, trained: Path, sae_report: Command, monkeypatch, tmp_path: Path):
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    status, out, err = sae_report(run, other, *SMALL)
    assert status == 0, err
    assert out == "Report: report.html\n" and not (run / "report.html").exists()
    assert (tmp_path / "report.analysis" / "features" / "job--acts.safetensors").is_file()
    values = blobs_of(tmp_path / "report.html")["report"][1]
    ids = [f"{name}--{dictionary}" for name in ("job", "other") for dictionary in ("acts", "update", "logits", "relu")]
    assert [entry["id"] for entry in values["meta"]["dictionaries"]] == ids
    assert [shown["name"] for shown in values["run"]["runs"]] == ["job", "other"]
    assert values["run"]["runs"][1]["dictionaries"] == ids[4:] and values["fidelity"]["entries"]["other--acts"]
    assert values["spaces"]["matches"]["job--acts"]["other--acts"]["median"] == pytest.approx(1)  # the same dictionary


def test_sources_on_different_texts_have_their_own(run: Path, sae_report: Command, tmp_path: Path):
    alone = lone_sae(run, tmp_path)
    text = tmp_path / "elsewhere" / "mine.txt"
    text.parent.mkdir()
    text.write_text("It was the best of times, it was the worst of times.\n\n" * 400)
    settings = (f"data.source={text}", "data.heldout=1.0", "data.context_length=16", *SMALL)
    page = tmp_path / "both.html"
    status, _, err = sae_report(run, alone, *settings, "-o", page)
    assert status == 0, err
    found = blobs_of(page)
    meta = found["report"][1]["meta"]
    assert [entry["corpus"] for entry in meta["dictionaries"]] == [0, 0, 0, 0, 1]
    assert [corpus["length"] for corpus in meta["corpora"]] == [32, 16] and meta["corpora"][1]["source"] == "mine.txt"
    assert [corpus["held_out"] for corpus in meta["corpora"]] == [True, False]
    for k in range(2):
        arrays, _ = found[f"corpus/{k}"]
        assert arrays["corpus.tokens"].shape == (meta["corpora"][k]["contexts"], meta["corpora"][k]["length"])
    assert meta["dictionaries"][4]["matches"] == [] and len(meta["dictionaries"][0]["matches"]) == 3
    assert str(text.parent) not in page.read_text() + json.dumps([values for _, values in found.values()])


def test_a_run_that_cannot_be_written_to(run: Path, sae_report: Command, tmp_path: Path):
    """What is measured then lies beside the report."""
    (run / "analysis" / "features").write_text("in the way, as a lack of permission would be")
    page = tmp_path / "elsewhere" / "page.html"
    assert sae_report(run, *SMALL, "-o", page)[0] == 0 and is_report(page)
    assert (tmp_path / "elsewhere" / "page.analysis" / "features" / "acts.safetensors").is_file()


def test_many_features_make_a_folder(run: Path, sae_report: Command):
    status, out, err = sae_report(run, *SMALL, "shard_above=100")
    assert status == 0, err
    assert out == f"Report: {run / 'report' / 'index.html'}\n"
    assert len(list((run / "report" / "data").glob("features-*.js"))) == 2 + 2 + 2 + 2
    assert is_report(run / "report") and not (run / "report.html").exists()
    said = sentence(sae_report(run, *SMALL, "shard_above=100", "-o", run / "x.html"))
    assert "name a folder" in said and not (run / "x.html").exists()


def test_what_is_no_report_is_replaced_only_by_name(run: Path, sae_report: Command):
    page = run / "report.html"
    page.write_text("<p>my notes</p>")
    assert "is not a report of sae_tools; name another place with -o" in sentence(sae_report(run, *SMALL))
    assert page.read_text() == "<p>my notes</p>" and not (run / "analysis" / "features").exists()
    assert sae_report(run, *SMALL, "-o", page)[0] == 0 and is_report(page)
    assert sae_report(run, *SMALL)[0] == 0  # a report takes a report's place


def test_a_run_that_was_stopped_is_shown_without_what_it_lacks(tmp_path: Path, sae_report: Command):
    steps = iter(range(100))
    cfg = load_config(JobConfig, write_job(tmp_path))
    run = run_job(cfg, should_stop=lambda: next(steps) >= 9).run.path
    status, _, err = sae_report(run, *SMALL)
    assert status == 0, err
    values = blobs_of(run / "report.html")["report"][1]
    assert set(values["fidelity"]["entries"].values()) == {None}
    assert all(0 < entry["training_tokens"] < 3072 for entry in values["meta"]["dictionaries"])


def test_what_is_known_of_a_text_not_to_have_been_trained_on(trained: Path):
    config = load_config(JobConfig, trained / "config.yaml")

    def known(*configs: JobConfig | None, **changes: object) -> bool:
        data = config.data.model_copy(update=changes)
        return held_out(SimpleNamespace(data=data, sources=[SimpleNamespace(config=c) for c in configs]))  # type: ignore[arg-type]

    assert known(config, config) and known(config, context_length=16) and known(config, source="/moved/corpus.jsonl")
    assert not known(config, heldout=0.5)  # has documents in it that were trained on
    assert not known(config, source="other.jsonl") and not known(config, text_column="title")
    assert not known(config, None)  # an SAE of others: nobody here knows its text


def test_a_folder_of_an_sae_alone(run: Path, sae_report: Command, tmp_path: Path):
    """A checkpoint with nothing of ours around it but what its own cfg.json says."""
    alone = lone_sae(run, tmp_path)
    assert "not in the SAE's own folder" in sentence(sae_report(alone, *SMALL))  # the text that it was trained on
    text = f"data.source={json.loads((alone / 'cfg.json').read_text())['metadata']['dataset_path']}"
    status, _, err = sae_report(alone, *SMALL, text, "-o", tmp_path / "alone.html")
    assert status == 0, err
    found = blobs_of(tmp_path / "alone.html")
    (shown,) = found["report"][1]["run"]["runs"]
    assert json.loads(shown["config"]) == json.loads((alone / "cfg.json").read_text())
    assert shown["tokens"] is None and shown["model"]["layers"] == 3 and shown["versions"] is None
    (entry,) = found["report"][1]["meta"]["dictionaries"]
    assert (
        entry["l0"] > 0
        and not entry["has_density"]
        and found["report"][1]["fidelity"]["entries"] == {entry["id"]: None}
    )
    assert found["report"][1]["spaces"]["matches"] == {entry["id"]: {}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nothing"], "nothing does not exist"),
        (["nope"], "nope does not exist"),
        (["{run}", "nope", "--serve"], "nope does not exist"),
        (["{run}", "tokens"], "'tokens' is a setting, and settings are written tokens=VALUE"),
        (["{run}", "data.heldout", "0.5"], "settings are written data.heldout=VALUE"),
        (["{run}", "tokens", "=5"], "settings are written tokens=VALUE"),
        (["{run}", "=5"], "as in tokens=50_000"),
        (["{run}/acts"], "{run}/acts/checkpoints/3072, or the run, {run}"),
        (["{run}/acts/checkpoints"], "{run}/acts/checkpoints/3072, or the run, {run}"),
        (
            ["{run}/acts/checkpoints/3072/cfg.json", "--serve"],
            "is a file; name the folder of a run or SAE, or a report",
        ),
        (["{tmp}"], "{tmp}"),
        (["{run}", "tokns=5"], "tokens"),
        (["{run}", "tokens=none"], "tokens"),
        (["tokens=5"], "needs a run"),
        (["{run}", "--port", "8000"], "--serve"),
        (["{run}", "-o", "{tmp}"], "is a folder"),
        (["{run}/config.yaml"], "config.yaml is a file; name the folder of a run or SAE, or a report"),
    ],
)
def test_one_sentence_for_every_mistake(trained: Path, sae_report: Command, tmp_path: Path, arguments, said: str):
    filled = [argument.format(run=trained, tmp=tmp_path) for argument in arguments]
    assert said.format(run=trained, tmp=tmp_path) in sentence(sae_report(*filled))


def test_a_dictionary_s_folder_is_named_as_the_user_did(trained: Path, sae_report: Command, monkeypatch):
    monkeypatch.chdir(trained.parent)
    said = sentence(sae_report(Path(trained.name, "acts")))
    assert said == (
        f"{trained.name}/acts holds all checkpoints of a dictionary; name the newest, "
        f"{trained.name}/acts/checkpoints/3072, or the run, {trained.name}."
    )


def test_what_is_taken_for_granted_is_said(run: Path, sae_report: Command, tmp_path: Path):
    """An SAE whose metadata names no text; and without a terminal every stage has a line of its own."""
    alone = lone_sae(run, tmp_path)
    cfg = json.loads((alone / "cfg.json").read_text())
    del cfg["metadata"]["dataset_path"]
    (alone / "cfg.json").write_text(json.dumps(cfg))
    status, out, err = sae_report(alone, *SMALL, "-o", tmp_path / "alone.html")
    assert status == 0 and out == f"Report: {tmp_path / 'alone.html'}\n", err
    note, *lines = err.splitlines()
    assert note == f"{alone}: its metadata names no text, so python-stdlib is read; data.source= names another."
    stages = [line.split("  ")[0] for line in lines]
    assert set(UNITS) | {"packing"} <= set(stages)


def test_help_says_what_is_kept_and_where(sae_report: Command):
    said = " ".join(sae_report("--help")[1].split())
    assert "another tokens= measures again" in said and "OUTPUT.analysis" in said


def test_mistakes_are_found_before_anything_is_measured(run: Path, sae_report: Command):
    (run / "file").write_text("")
    for output in (run / "file" / "report.html", "/proc/report.html"):
        assert "nothing can be written" in sentence(sae_report(run, *SMALL, "-o", output))
    assert not (run / "analysis" / "features" / "corpus-0.safetensors").exists()


def test_a_report_that_is_there_can_only_be_served(run: Path, sae_report: Command):
    (run / "report.html").write_text(f"<!doctype html>{MARKER}")
    assert "is a report already" in sentence(sae_report(run / "report.html"))


def test_a_run_without_a_complete_checkpoint(run: Path, sae_report: Command):
    for folder in (run / "acts" / "checkpoints").iterdir():
        shutil.rmtree(folder)
    shutil.rmtree(run / "state")
    assert str(run) in sentence(sae_report(run, *SMALL))


def test_an_interrupted_report_goes_on(run: Path, tmp_path: Path):
    """Killed by Ctrl-C while it measures: it says how to go on, leaves no half page, and the next call ends well."""
    code = """
import sys, sae_tools.analysis.features as features
before = features.save_features
def save(path, *rest):
    before(path, *rest)
    raise KeyboardInterrupt
features.save_features = save
from sae_tools.cli.report import main
main()
"""
    arguments = [str(run), *SMALL]
    first = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert first.returncode == 130 and "the same command goes on" in first.stderr and "Traceback" not in first.stderr
    assert not (run / "report.html").exists() and not list(run.glob(".tmp-*"))
    done = (run / "analysis" / "features" / "acts.safetensors").read_bytes()
    command = [sys.executable, "-m", "sae_tools.cli.report", *arguments]
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert (run / "analysis" / "features" / "acts.safetensors").read_bytes() == done and is_report(run / "report.html")


def test_build_and_serve(run: Path):
    command = [sys.executable, "-m", "sae_tools.cli.report", str(run), *SMALL, "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Report: {run / 'report.html'}\n"
        assert "http://127.0.0.1:" in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()


def test_help_is_quick_and_its_example_is_a_command():
    code = "import sys; sys.argv = ['sae-report', '--help']\nfrom sae_tools.cli.report import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    (example,) = re.findall(r"Example: (sae-report .*)", done.stdout)
    assert example.split()[:2] == ["sae-report", "runs/quickstart"]


def test_sae_train_builds_it_too(monkeypatch, capfd, tmp_path: Path):
    from sae_tools.cli import train

    monkeypatch.setattr(sys, "argv", ["sae-train", str(write_job(tmp_path)), "training.tokens=256", "--report"])
    with pytest.raises(SystemExit) as exit:
        train.main()
    page = tmp_path / "runs" / "job" / "report.html"
    assert exit.value.code == 0 and is_report(page)
    assert capfd.readouterr().out.endswith(f"  report: {page}\n")


def test_sae_train_builds_none_of_a_run_that_was_stopped(monkeypatch, capfd, tmp_path: Path):
    from sae_tools.cli import train
    from sae_tools.cli.common import StopSignals

    monkeypatch.setattr(StopSignals, "requested", lambda self: True)
    monkeypatch.setattr(sys, "argv", ["sae-train", str(write_job(tmp_path)), "--report"])
    with pytest.raises(SystemExit) as exit:
        train.main()
    assert exit.value.code == 130 and not (tmp_path / "runs" / "job" / "report.html").exists()
    assert "sae-train --resume" in capfd.readouterr().err
