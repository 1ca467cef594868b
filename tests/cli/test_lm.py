"""`sae-lm` says what it does without loading what it does it with."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from typer.testing import CliRunner
from sae_tools.cli.lm import app
for command in ("train", "evaluate"):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0 and f"Example: sae-lm {command} " in shown.output, shown.output
loaded = {"torch", "transformers", "datasets", "numpy"} & set(sys.modules)
assert not loaded, loaded
"""


def test_help_is_quick_and_shows_an_example():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
