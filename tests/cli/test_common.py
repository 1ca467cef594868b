from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer

from sae_tools.cli.common import StopSignals, share_cores

COMMAND = """
import errno, sys, typer
from sae_tools.cli.common import run_command
from sae_tools.errors import UserError
app = typer.Typer(add_completion=False, rich_markup_mode=None)
@app.command()
def do(what: str, number: int = typer.Option(1, help="A number.")) -> None:
    if what == "mistake": raise UserError("a.yaml, line 3: expected x, found y.")
    if what == "bug": raise ValueError("ours")
    if what == "interrupt": raise KeyboardInterrupt
    if what == "full": raise OSError(errno.ENOSPC, "No space left on device", "runs/a/weights")
    if what == "status": raise typer.Exit(7)
    if what == "much": print("x" * 1_000_000)
    print("done", number)
run_command(app, "sae-thing")
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND, *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["mistake"], 2, "sae-thing: a.yaml, line 3: expected x, found y.\n"),
        (["full"], 2, "sae-thing: no space left on device while writing runs/a/weights.\n"),
        (["ok", "--nubmer", "3"], 2, "sae-thing: No such option: --nubmer"),
        (["ok", "--number", "three"], 2, "sae-thing: Invalid value for '--number'"),
        ([], 2, "sae-thing: Missing argument"),
        (["interrupt"], 130, "sae-thing: interrupted.\n"),
        (["status"], 7, ""),
    ],
)
def test_what_the_user_got_wrong_is_one_sentence(args: list[str], status: int, said: str):
    result = run(*args)
    assert result.returncode == status and result.stderr.startswith(said) and result.stderr.count("\n") <= 1
    assert result.stdout == ""


def test_done_and_help():
    assert run("ok", "--number", "4").stdout == "done 4\n"
    assert run("--help").returncode == 0 and "--number" in run("--help").stdout


def test_our_own_bugs_keep_their_traceback():
    result = run("bug")
    assert result.returncode == 1 and "Traceback" in result.stderr and "ValueError: ours" in result.stderr


def test_output_into_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "much"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_stops(number: signal.Signals, capfd):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert "Stopping as soon as the state is saved" in capfd.readouterr().err
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_help_of_the_commands_leaves_torch_out():
    code = textwrap.dedent("""
        import importlib, sys
        name = sys.argv.pop(1)
        try:
            importlib.import_module(name).main()
        except SystemExit as done:
            assert not done.code, done.code
        heavy = {"torch", "transformers", "transformer_lens", "datasets", "wandb"} & set(sys.modules)
        assert not heavy, heavy
        """)
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    commands = [
        target.partition(":")[0] for target in tomllib.loads(project.read_text())["project"]["scripts"].values()
    ]
    assert commands
    for command in commands:
        app = typer.main.get_command(importlib.import_module(command).app)
        for words in [[], *([name] for name in getattr(app, "commands", {}))]:
            done = subprocess.run(
                [sys.executable, "-c", code, command, *words, "--help"],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            if words or not hasattr(app, "commands"):
                assert "Example: sae-" in done.stdout


def test_threads_share_the_cores_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
