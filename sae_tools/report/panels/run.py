"""What was trained on what: configuration, model, data, versions, and how fast it went."""

from __future__ import annotations

from typing import Any

from sae_tools.models.language_model import title
from sae_tools.report.contents import Contents, RunShown


def report(contents: Contents) -> dict[str, Any]:
    """`runs`: one entry per run; what a run does not have is null."""
    return {"runs": [describe(run) for run in contents.runs]}


def describe(run: RunShown) -> dict[str, Any]:
    facts = run.model.facts
    name, seed = facts.get("name"), facts.get("shuffle_weights")
    provenance = (run.config.provenance if run.config else None) or {}
    seconds = sum(record["time"]["seconds"] for record in run.records)
    tokens = run.records[-1]["tokens"] if run.records else None
    return {
        "name": run.name,
        "config": run.config_text,
        "model": {
            "name": name if seed is None else title(str(name), seed),
            "architecture": facts.get("architecture"),
            "layers": facts.get("n_layers"),
            "d_model": facts.get("d_model"),
            "d_mlp": facts.get("d_mlp"),
            "d_vocab": facts.get("d_vocab"),
            "parameters": facts.get("parameters"),
            "context_length": facts.get("n_ctx"),
            "card": run.model.card if seed is None else None,  # which is about what the model has learnt
        },
        "data": provenance.get("data"),
        "versions": provenance.get("versions"),
        "seed": run.config.seed if run.config else None,
        "asked_tokens": run.config.training.tokens if run.config else None,
        "tokens": tokens,
        "seconds": seconds if tokens else None,
        "tokens_per_s": tokens / seconds if tokens and seconds else None,
        "dictionaries": run.dictionaries,
    }
