"""The Triton kernels: right in Triton's interpreter, accepted by the compiler for Hopper, right on CUDA.

Whether Triton interprets or compiles is settled when it is imported, so each has its own process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no package for this platform")

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")


def run(*arguments: str, interpreted: bool, **environment: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    variables |= {"PYTHONPATH": str(ROOT)} | environment | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    process = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    return process.stdout


@pytest.mark.parametrize("interpreted", [True, pytest.param(False, marks=on_cuda)], ids=["interpreted", "cuda"])
def test_kernels_are_right(interpreted: bool):
    cases = str(FOLDER / "triton_cases.py")
    out = run("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", cases, interpreted=interpreted)
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed[1]) > 40 and "skipped" not in out


def test_kernels_compile_for_hopper(tmp_path: Path):
    out = run(str(FOLDER / "triton_compiled.py"), interpreted=False, TRITON_CACHE_DIR=str(tmp_path))
    kernels = dict(re.findall(r"^(\w+) .*?stack (\d+)", out, re.M))
    assert set(kernels) == {
        *("_group_maxima", "_choose_groups", "_choose_entries", "_gather_groups"),
        *("_dots", "_sum_by_row", "_sum_chunks", "_sum_by_feature"),
    }
    assert set(kernels.values()) == {"0"}, out  # nothing is spilled from registers


def test_the_check_for_cuda_machines_runs():
    out = run("scripts/checks/on_cuda.py", "--small", interpreted=True)
    assert "All are right." in out and "WRONG" not in out


@on_cuda
def test_kernels_are_right_at_real_sizes():
    out = run("scripts/checks/on_cuda.py", interpreted=False)
    assert "All are right." in out
