"""Loss, L0 and the rest over training, as metrics.jsonl has them."""

from __future__ import annotations

from typing import Any

from sae_tools.report.contents import Contents, RunShown


def report(contents: Contents) -> dict[str, Any]:
    """`runs`: per run `tokens`, `tokens_per_s` (of each stretch between two lines) and, per dictionary, every number
    that was logged, as lists of one value per line (null where it was not finite)."""
    return {"runs": [curves(contents, run) for run in contents.runs]}


def curves(contents: Contents, run: RunShown) -> dict[str, Any]:
    tokens = [record["tokens"] for record in run.records]
    stretches = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    seconds = [record["time"]["seconds"] for record in run.records]
    by_dictionary = {}
    for id in run.dictionaries:
        name = contents.dictionary(id).name
        lines = [record["dictionaries"].get(name, {}) for record in run.records]
        keys = dict.fromkeys(key for line in lines for key, value in line.items() if isinstance(value, (int, float)))
        by_dictionary[id] = {key: [line.get(key) for line in lines] for key in keys}
    return {
        "name": run.name,
        "tokens": tokens,
        "tokens_per_s": [n / s if s else None for n, s in zip(stretches, seconds, strict=True)],
        "dictionaries": by_dictionary,
    }
