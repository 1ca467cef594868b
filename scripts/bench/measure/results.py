"""reports/benchmarks: results.json, one section for each script, and README.md, which is written from it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measure.environment import ROOT

FOLDER = ROOT / "reports" / "benchmarks"


def load(folder: Path = FOLDER) -> dict[str, Any]:
    """The sections that have been measured; {} where none has."""
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


def save(section: str, found: dict[str, Any], folder: Path = FOLDER) -> None:
    """Put a section's measurements in the place of its last ones, with the machine, and write README.md anew."""
    from measure.machine import describe
    from measure.render import render

    folder.mkdir(parents=True, exist_ok=True)
    everything = load(folder) | {section: {"machine": describe(), **found}}
    ordered = {key: everything[key] for key in sorted(everything)}
    (folder / "results.json").write_text(json.dumps(_rounded(ordered), indent=1) + "\n")
    (folder / "README.md").write_text(render(load(folder)))


def measured_here(section: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The section's earlier parts, if they come from this machine with these versions, so that some can be measured
    again alone."""
    from measure.machine import describe

    earlier = load(folder).get(section, {})
    machine = earlier.pop("machine", {})
    return earlier if {**machine, "date": ""} == _rounded({**describe(), "date": ""}) else {}


def _rounded(value: Any) -> Any:
    """Six digits are more than any of these numbers has; what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value
