"""The parts of the memory estimate against what is counted, and the whole against a job in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sae_tools.dictionaries.sparse.select as select
from sae_tools.allocations import peak_of
from sae_tools.config import JobConfig
from sae_tools.training.estimate_memory import characters_of, small_dictionary, text_bytes, trained
from sae_tools.training.step import training_step
from tests.jobs import write_job

DIM, FEATURES, BATCH = 32, 4096, 512
CPU = torch.device("cpu")


def job(architecture: dict, **training) -> JobConfig:
    dictionary = {"site": "mlp_out@1", "d_sae": FEATURES, "b_dec_init": "zero", "architecture": architecture}
    settings = {"batch_size": BATCH, "selection": "float32", **training}
    return JobConfig.model_validate({"dictionaries": {"d": dictionary}, "training": settings})


TOPK = {"kind": "topk", "k": 16, "aux_k": 16, "dead_after_tokens": 10**9}


@pytest.mark.parametrize("entries", [2**26, BATCH * FEATURES // 4], ids=["one product", "four"])
@pytest.mark.parametrize(
    ("architecture", "training", "dead"),
    [
        (TOPK, {}, False),
        ({**TOPK, "dead_after_tokens": 1}, {}, True),
        (TOPK, {"selection": "bfloat16"}, False),
        ({**TOPK, "kind": "batchtopk"}, {}, False),
        ({"kind": "relu"}, {}, False),
        ({"kind": "relu", "form": "decoder-norm"}, {}, False),
        ({"kind": "gated"}, {}, False),
        ({"kind": "gated", "form": "decoder-norm"}, {}, False),
        ({**TOPK, "kind": "matryoshka"}, {}, False),
        ({"kind": "jumprelu"}, {}, False),
        ({"kind": "jumprelu", "penalty": "quadratic", "target_l0": 16}, {}, False),
    ],
    ids=[
        "topk",
        "auxk",
        "bfloat16",
        "batchtopk",
        "relu",
        "relu-norm",
        "gated",
        "gated-norm",
        "matryoshka",
        "jumprelu",
        "jumprelu-quadratic",
    ],
)
def test_a_step_takes_what_is_said(monkeypatch, entries: int, architecture: dict, training: dict, dead: bool):
    monkeypatch.setitem(select.MICRO_BATCH_ENTRIES, "cpu", entries)
    monkeypatch.setattr(select, "MIN_MICRO_BATCH", 16)
    cfg = job(architecture, **training)
    x = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(0))
    dictionary = small_dictionary(cfg.dictionaries["d"], x, FEATURES)
    dictionary.selection_precision = "bfloat16" if training else "float32"
    half = torch.arange(FEATURES) % 2 == 0 if dead else None
    training_step(dictionary, x, dead=half, l1=1.0)  # kernels are compiled by now
    counted = peak_of(lambda: training_step(dictionary, x, dead=half, l1=1.0))
    said = trained(cfg.dictionaries["d"], DIM, cfg, CPU).step
    assert 0.85 < said / counted < 1.3, (said, counted)


def test_states():
    said = trained(job(TOPK).dictionaries["d"], DIM, job(TOPK), CPU)
    x = torch.randn(8, DIM)
    dictionary = small_dictionary(job(TOPK).dictionaries["d"], x, FEATURES)
    assert said.parameters == said.gradients == sum(4 * p.numel() for p in dictionary.parameters())


def test_text_is_at_most_what_the_files_hold(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * 1000)
    (tmp_path / "b.txt.gz").write_bytes(b"x" * 100)
    assert characters_of(str(tmp_path)) == 1600
    data = job(TOPK).data.model_copy(update={"source": str(tmp_path)})
    assert text_bytes(data, 10**6) == text_bytes(data, 1600)
    assert text_bytes(data, 800).read == text_bytes(data, 1600).read // 2
    assert characters_of("python-stdlib") == float("inf")


ESTIMATE = """
import sys
from pathlib import Path
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.memory import keep_freed_memory
keep_freed_memory()
from sae_tools.training.estimate import estimate_job
print(estimate_job(load_config(JobConfig, Path(sys.argv[1]), sys.argv[2:])).peak_bytes)
"""


def peak_and_output(*arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024, out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_a_job_takes_what_is_said(tmp_path: Path):
    """300 MB of it are no libraries: a dictionary of 65,536 features."""
    big = {"site": "mlp_out@1", "d_sae": 65_536, "architecture": {"kind": "topk", "k": 8}, "b_dec_init": "zero"}
    path = str(write_job(tmp_path, dictionaries={"big": big}, training__tokens=1024, training__batch_size=512))
    _, said = peak_and_output("-c", ESTIMATE, path)
    measured, _ = peak_and_output("-m", "sae_tools.cli.train", path)
    assert 0.75 < int(said) / measured < 1.25, (json.loads(said), measured)
