"""A whole job at the smallest size that is still a job: random model, real text, three spaces, seconds on one core."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import yaml

from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from tests.tiny_models import tiny_model


def text_corpus(folder: Path, documents: int = 120, characters: int = 1500) -> Path:
    """Python sources of the standard library as JSONL, cut short."""
    path = folder / "corpus.jsonl"
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:documents]
    with path.open("w") as file:
        for source in sources:
            text = source.read_text(encoding="utf-8", errors="replace")[:characters]
            file.write(json.dumps({"text": text, "title": source.name}) + "\n")
    return path


def job_tree(folder: Path, kind: str = "gpt2") -> dict[str, Any]:
    """Settings of a job in `folder`: 3 TopK dictionaries in 3 spaces and one ReLU, 24 steps of 128 rows."""
    topk = {"kind": "topk", "k": 4, "dead_after_tokens": 600}
    relu = {"kind": "relu", "l1": 0.3, "l1_warmup_steps": 5, "resample_at": [10], "resample_dead_steps": 4}
    return {
        "name": "job",
        "runs_dir": str(folder / "runs"),
        "model": {"name": str(tiny_model(kind))},
        "data": {
            "source": str(text_corpus(folder)),
            "context_length": 32,
            "shuffle_characters": 20_000,
            "heldout": 0.2,
        },
        "buffer": {"rows": 700, "contexts_per_forward": 4},
        "dictionaries": {
            "acts": {"site": "mlp_acts@1", "space": {"kind": "mlp_acts"}, "d_sae": 64, "architecture": topk},
            "update": {"site": "mlp_out@1", "space": {"kind": "resid_update"}, "d_sae": 64, "architecture": topk},
            "logits": {
                "site": "mlp_out@2",
                "space": {"kind": "logit_update", "ln": "mean"},
                "d_sae": 48,
                "architecture": {**topk, "k": 6},
            },
            "relu": {
                "site": "mlp_out@1",
                "d_sae": 40,
                "architecture": {**relu, "resample_inputs": 300},
                "encoder_init": "kaiming",
            },
        },
        "training": {
            "tokens": 24 * 128,
            "batch_size": 128,
            "lr": 3e-3,
            "warmup_steps": 3,
            "estimate_rows": 400,
            "checkpoints": 3,
            "threads": 1,
        },
        "tracking": {"log_every": 5, "density_windows": 6},
        "fidelity": {"tokens": 600},
    }


def write_job(folder: Path, **changes: Any) -> Path:
    """The job as a YAML file; `changes` are whole sections or dotted keys with `__` for the dot."""
    tree = job_tree(folder)
    for key, value in changes.items():
        at = tree
        *path, last = key.split("__")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def job_config(folder: Path, **changes: Any) -> JobConfig:
    return load_config(JobConfig, write_job(folder, **changes))
