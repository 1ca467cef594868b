"""Compares what `sae-train --dry-run` says about memory with what the same jobs take, on the CPU.

    python scripts/checks/memory.py [NAME …] [--list]

Each job runs to its end, held-out measurement included, in a process of its own, for as few steps as bring it to its
peak. Prints estimate, measured peak of resident memory and their ratio; exits with status 1 if one of the estimates is
off by more than 15 %. All of them take some minutes and up to 6 GB. The models are the bundled one and random ones of
other shapes with its tokenizer; nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 0.15
SHORT = ["training.tokens=8192", "training.checkpoints=1", "fidelity.tokens=8192", "data.shuffle_characters=2_000_000"]
OUT = {"site": "mlp_out@3", "space": {"kind": "resid_update"}, "d_sae": 2048, "architecture": {"kind": "topk"}}
QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def only(*dictionaries: dict) -> str:
    """An override that replaces the quickstart's dictionaries."""
    return "dictionaries=" + json.dumps({f"d{i}": d for i, d in enumerate(dictionaries)})


def features(n: int) -> dict:
    return {**OUT, "d_sae": n}


JOBS: dict[str, list[str]] = {
    "quickstart": ["data.shuffle_characters=16_000_000"],
    "eight dictionaries": [only(*[features(4096)] * 8)],
    "32,768 features": [only(features(32_768)), "buffer.rows=16384"],
    "131,072 features": [only(features(131_072)), "buffer.rows=16384", "training.tokens=2048"],
    "AuxK, all dead": [only({**features(16_384), "architecture": {"kind": "topk", "dead_after_tokens": 1024}})],
    "ReLU, dense": [only({**features(8192), "architecture": {"kind": "relu"}}), "buffer.rows=16384"],
    "JumpReLU, dense": [only({**features(16_384), "architecture": {"kind": "jumprelu"}}), "training.tokens=2048"],
    "BatchTopK": [only({**features(16_384), "architecture": {"kind": "batchtopk"}})],
    "bfloat16 selection": [only(features(16_384)), "training.selection=bfloat16"],
    "large buffer": ["buffer.rows=262144"],
    "bfloat16 model": ["model.dtype=bfloat16", "buffer.rows=131072"],
    "large batch": [only(features(4096)), "training.batch_size=16384", "training.tokens=65536"],
    "much held-out text": [only(OUT), "fidelity.tokens=100_000", "buffer.rows=16384"],
    "the token's own scale": [only({**OUT, "space": {"kind": "logit_update", "ln": "token"}, "d_sae": 16_384})],
    "long context": ["model.name={long}", "data.context_length=2048", "buffer.contexts_per_forward=8"],
    "GPT-2 small's size": [
        "model.name={gpt2}", "buffer.rows=16384", "buffer.contexts_per_forward=8", "training.estimate_rows=8192",
        "training.tokens=4096", "fidelity.tokens=1024",
        only(*[{**OUT, "site": site, "space": {"kind": kind}, "d_sae": 6144} for site, kind in (
            ("mlp_acts@8", "mlp_acts"), ("mlp_out@8", "resid_update"), ("mlp_out@8", "logit_update"))]),
    ],
}  # fmt: skip

MODELS = {
    "long": {"n_positions": 2048, "n_embd": 128, "n_layer": 4, "n_head": 16, "vocab_size": 4096},
    "gpt2": {},
}

MAKE_MODEL = """
import json, sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
from sae_tools.models.locate import BUNDLED
from sae_tools.models.load import load_tokenizer
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(**json.loads(sys.argv[2]))).save_pretrained(sys.argv[1])
load_tokenizer(BUNDLED).save_pretrained(sys.argv[1])
"""

ESTIMATE = """
import json, sys
from pathlib import Path
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.memory import keep_freed_memory
keep_freed_memory()
from sae_tools.training.estimate import estimate_job
found = estimate_job(load_config(JobConfig, Path(sys.argv[1]), sys.argv[2:]))
print(json.dumps({"peak": found.peak_bytes, "settled": found.settled_bytes, "phases": found.phases}))
"""


def run(*arguments: str) -> tuple[str, int]:
    """(what Python printed, its peak resident memory in bytes); ends the check where it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        err.seek(0)
        if status:
            sys.exit(f"{' '.join(arguments)[:300]}\n{err.read()[-3000:]}")
        return out.read(), usage.ru_maxrss * 1024


def main() -> int:
    names = [a for a in sys.argv[1:] if not a.startswith("--")] or list(JOBS)
    if "--list" in sys.argv:
        print("\n".join(JOBS))
        return 0
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        models = {name: str(Path(folder, name)) for name in MODELS}
        print(f"{'':30}  estimated   measured  ratio   largest phase", flush=True)
        for name in names:
            for model, shape in MODELS.items():
                if any(f"{{{model}}}" in o for o in JOBS[name]) and not Path(models[model]).exists():
                    run("-c", MAKE_MODEL, models[model], json.dumps(shape))
            overrides = [*SHORT, f"runs_dir={folder}/runs", *JOBS[name]]
            overrides = [o.format(**models) if o.startswith("model.name") else o for o in overrides]
            out, _ = run("-c", ESTIMATE, str(QUICKSTART), *overrides)
            estimate = json.loads(out.splitlines()[-1])
            _, measured = run("-m", "sae_tools.cli.train", str(QUICKSTART), *overrides)
            ratio = estimate["peak"] / measured
            worst = max(worst, abs(ratio - 1))
            phase = max(estimate["phases"], key=estimate["phases"].get)
            megabytes = f"{estimate['peak'] / 2**20:7,.0f} MiB {measured / 2**20:7,.0f} MiB"
            print(f"{name:30}{megabytes}   {ratio:.2f}   {phase}", flush=True)
            if "--phases" in sys.argv:
                print({"settled": estimate["settled"] >> 20} | {k: v >> 20 for k, v in estimate["phases"].items()})
    print(f"largest deviation {worst:.0%}, of at most {TOLERANCE:.0%}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
