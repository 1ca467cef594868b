"""`sae-store` and `store: FOLDER` as a user meets them: sizes beforehand, running again, one sentence for mistakes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae_tools.activations.store import Store
from sae_tools.cli import store as store_command
from sae_tools.cli import train as train_command
from tests.activations.stores import files_of
from tests.cli.commands import Command, in_process, sentence
from tests.jobs import write_job
from tests.tiny_models import tiny_model


@pytest.fixture
def sae_store(monkeypatch, capfd) -> Command:
    return in_process("sae-store", store_command.main, monkeypatch, capfd)


@pytest.fixture
def sae_train(monkeypatch, capfd) -> Command:
    return in_process("sae-train", train_command.main, monkeypatch, capfd)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Path]:
    """A job and its store, made by the command in a process of its own."""
    job = write_job(tmp_path_factory.mktemp("written"))
    store = job.parent / "store"
    done = subprocess.run(
        [sys.executable, "-m", "sae_tools.cli.store", str(job), "--output", str(store)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for said in ("3,072 rows", "mlp_acts@1 (128), mlp_out@1 (32), mlp_out@2 (32), the final norm's scale in float32"):
        assert said in done.stderr
    size = int(re.search(r"([\d,]+) bytes \(", done.stderr)[1].replace(",", ""))  # type: ignore[index]
    on_disk = sum(map(len, files_of(store).values()))
    assert on_disk <= size <= 1.05 * on_disk
    return job, store


def test_from_text_to_dictionaries_through_the_commands(written: tuple[Path, Path], sae_train: Command):
    job, store = written
    status, out, err = sae_train(job, f"store={store}", "name=through", "training.tokens=512", "fidelity.tokens=100")
    assert status == 0, err
    assert f"rows: 3,072 from {store}" in err and "CE recovered" in out
    assert (job.parent / "runs" / "through" / "analysis" / "fidelity.json").exists()
    assert "fingerprint" in (job.parent / "runs" / "through" / "config.yaml").read_text()


def test_dry_runs_write_nothing(written: tuple[Path, Path], sae_store: Command, sae_train: Command, tmp_path: Path):
    job, store = written
    status, _, err = sae_store(job, "--output", tmp_path / "new", "--tokens", "500", "--dry-run")
    assert status == 0 and "500 rows" in err and "bytes" in err and not (tmp_path / "new").exists()
    status, out, err = sae_train(job, f"store={store}", "--dry-run")
    assert status == 0 and "rows from the store" in out and "language model (harvest)" not in out, err


def test_the_same_command_again(written: tuple[Path, Path], sae_store: Command):
    job, store = written
    before = files_of(store)
    status, _, err = sae_store(job, "--output", store)
    assert status == 0 and "is complete: 3,072 rows" in err
    status, out, err = sae_store(job, "--output", store, "--verify")
    assert status == 0 and "3,072 rows, every checksum as it was written" in out
    assert sae_store("--output", store, "--verify")[0] == 0
    assert sae_store(job, f"store={store}")[0] == 0  # where the configuration says
    assert files_of(store) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=1"], "seed is 0 there, but 1 here"),
        (["--tokens", "3073"], "rows is 3072 there, but 3073 here"),
        (["--dtype", "bfloat16"], "dtype is float32 there, but bfloat16 here"),
        (["dictionaries.acts.site=mlp_acts@2"], "sites is .*mlp_acts@1.* there, but .*mlp_acts@2"),
        (["rows.skip_positions=2"], "row_settings.skip_positions is 1 there, but 2 here"),
        (["data.context_length=16"], "data.context_length is 32 there, but 16 here"),
        (["model.dtype=bfloat16"], "model.dtype is float32 there, but bfloat16 here"),
        ([f"model.name={tiny_model('gpt2', seed=3)}"], "model.weights_fingerprint is"),
    ],
)
def test_a_store_of_other_settings(written: tuple[Path, Path], sae_store: Command, arguments: list[str], said: str):
    job, store = written
    before = files_of(store)
    message = sentence(sae_store(job, "--output", store, *arguments), "sae-store")
    assert re.search(said, message) and str(store) in message, message
    assert files_of(store) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "int8"], "--dtype is 'int8', but must be one of float32, bfloat16, float16"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--tokens", "-5"], "--tokens is -5"),
        (["--tokens", "many"], "--tokens"),
        (["--tokens", "1000000000000"], r"needs [\d,]+ bytes .* free"),
        (["data.source=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["dictionaries.acts.site=mlp_acts@7"], "mlp_acts@7"),
        (["bufer.rows=5"], "bufer"),
    ],
)
def test_mistakes(written: tuple[Path, Path], sae_store: Command, tmp_path: Path, arguments: list[str], said: str):
    message = sentence(sae_store(written[0], "--output", tmp_path / "new", *arguments), "sae-store")
    assert re.search(said, message), message
    assert not (tmp_path / "new").exists()


def test_folders_that_are_something_else(written: tuple[Path, Path], sae_store: Command, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    assert "thesis.tex" in sentence(sae_store(written[0], "--output", tmp_path / "mine"), "sae-store")
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"all of it"}
    assert "is a file" in sentence(sae_store(written[0], "--output", tmp_path / "mine" / "thesis.tex"), "sae-store")
    assert "--output FOLDER" in sentence(sae_store(written[0]), "sae-store")
    assert "needs a configuration" in sentence(sae_store("--verify"), "sae-store")
    assert "no such activation store" in sentence(sae_store("--verify", "-o", tmp_path / "none"), "sae-store")


def test_a_signal_stops_between_two_shards_and_says_how_to_go_on(written: tuple[Path, Path], tmp_path: Path):
    job, store = written
    driver = Path(__file__).parents[1] / "training" / "kill_at.py"
    number = str(int(signal.SIGTERM))
    arguments = [f"harvest-signal-{number}", "9", "sae-store", str(job), "--output", str(tmp_path / "new")]
    stopped = subprocess.run([sys.executable, str(driver), *arguments], capture_output=True, text=True)
    assert stopped.returncode == 130 and "Traceback" not in stopped.stderr, stopped.stderr
    assert re.search(r"Stopped after [\d,]+ rows\. To go on, run the same command again", stopped.stderr)
    again = [sys.executable, "-m", "sae_tools.cli.store", str(job), "--output", str(tmp_path / "new")]
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0 and "are there already" in done.stderr, done.stderr
    assert files_of(tmp_path / "new") == files_of(store)


@pytest.fixture
def copy(written: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the store that may be damaged."""
    shutil.copytree(written[1], tmp_path / "copy")
    return tmp_path / "copy"


def test_damaged_stores_are_refused_before_a_run_is_made(written: tuple[Path, Path], copy: Path, sae_train: Command):
    job = written[0]
    runs = job.parent / "runs"
    before = sorted(runs.glob("*"))
    shard = copy / "rows-00002.safetensors"
    whole = shard.read_bytes()
    for content, said in ((whole[:-7], "truncated"), (whole[:4], "truncated"), (b"\0" * len(whole), "truncated or no")):
        shard.write_bytes(content)
        message = sentence(sae_train(job, f"store={copy}"))
        assert "rows-00002.safetensors" in message and said in message, message
    shutil.copy(copy / "rows-00001.safetensors", shard)
    assert "rows-00002.safetensors" in sentence(sae_train(job, f"store={copy}"))
    shard.unlink()
    assert "rows-00002.safetensors is missing" in sentence(sae_train(job, f"store={copy}"))
    assert "rows-00002.safetensors is missing" in sentence(sae_train(job, f"store={copy}", "--dry-run"))
    shard.write_bytes(whole)
    (copy / "manifest.json").unlink()
    assert "is not complete" in sentence(sae_train(job, f"store={copy}"))
    assert "no such activation store" in sentence(sae_train(job, "store=/nowhere"))
    assert sorted(runs.glob("*")) == before


def test_a_flipped_bit_is_found_on_request(written: tuple[Path, Path], copy: Path, sae_store: Command):
    shard = copy / "rows-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert Store.open(copy).rows == 3072
    assert "rows-00001.safetensors is damaged" in sentence(sae_store("--output", copy, "--verify"), "sae-store")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"model.name={tiny_model('gpt2', seed=3)}"], "another language model .*weights_fingerprint"),
        (["model.dtype=bfloat16"], "another language model .*dtype is float32 there, but bfloat16"),
        (["dictionaries.acts.site=mlp_acts@2"], "holds no site 'mlp_acts@2'; it has mlp_acts@1, mlp_out@1, mlp_out@2"),
        (["rows.skip_positions=0"], "written with rows.skip_positions 1, but the job has 0"),
        (["rows.skip_special=false"], "written with rows.skip_special True, but the job has False"),
        (["training.estimate_rows=4000"], "estimate_rows is 4,000, but .* holds 3,072 rows"),
        (["data.context_length=16"], "other text than the job's: context_length is 32 there, but 16"),
        (["data.heldout=0.5"], "other text than the job's: heldout"),
    ],
)
def test_stores_that_do_not_fit_the_job(
    written: tuple[Path, Path], sae_train: Command, tmp_path: Path, overrides: list[str], said: str
):
    job, store = written
    message = sentence(sae_train(job, f"store={store}", f"runs_dir={tmp_path}", *overrides))
    assert re.search(said, message) and message.count("\n") == 0, message
    assert list(tmp_path.glob("*")) == []


def test_a_store_without_the_scale(written: tuple[Path, Path], sae_store: Command, sae_train: Command, tmp_path: Path):
    job, _ = written
    bare = tmp_path / "bare"
    logits = "dictionaries.logits.space.kind=resid_update"
    assert sae_store(job, logits, "--output", bare, "--tokens", "600")[0] == 0
    message = sentence(sae_train(job, f"store={bare}", f"runs_dir={tmp_path / 'runs'}"))
    assert "lacks the final norm's scale, which dictionary 'logits' needs" in message
    small = ["training.tokens=256", "fidelity.tokens=100", f"runs_dir={tmp_path / 'runs'}"]
    assert sae_train(job, f"store={bare}", logits, *small)[0] == 0
