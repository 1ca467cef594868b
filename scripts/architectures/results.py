"""From runs to the table: interpolation at equal L0, the best learning rate, seeds, and reports/architectures."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats
from tasks import (
    CHOSEN,
    LEARNING_RATES,
    STAGES,
    TARGETS,
    TWO_SITES,
    Stage,
    at_the_best_rates,
    sides,
    to_choose_a_rate,
)

from sae_tools.training.start import versions

REPORT = Path(__file__).resolve().parents[2] / "reports" / "architectures"


def at_l0(runs: list[dict[str, Any]], target: float) -> float:
    """FVU at that L0: log FVU linear in log L0 between the two runs around it (beyond the outermost, their line)."""
    points = sorted((math.log(max(run["l0"], 1e-3)), math.log(run["fvu"])) for run in runs)
    x = math.log(target)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1 or (x1, y1) == points[-1]:
            return math.exp(y0 + (y1 - y0) * (x - x0) / max(x1 - x0, 1e-9))
    raise ValueError("at least two runs are needed")


def brackets(runs: list[dict[str, Any]], target: float) -> bool:
    """Whether there are runs on both sides of that L0, or within 5 % of it."""
    l0s = [run["l0"] for run in runs]
    return min(l0s) <= 1.05 * target and max(l0s) >= target / 1.05


def best_rates(architecture: str, runs: list[dict[str, Any]]) -> dict[int, float]:
    """For each L0 the learning rate of the lowest FVU; where L0 is no setting, one for all: that of the lowest mean log
    FVU, since each costs a curve of its own.

    runs: of the first seed, at every learning rate and setting.
    """

    def score(lr: float, targets: tuple[int, ...]) -> float:
        of_lr = [run for run in runs if run["lr"] == lr]
        if architecture in CHOSEN:
            return mean(math.log(run["fvu"]) for run in of_lr if run["setting"] in targets)
        return mean(math.log(at_l0(of_lr, target)) for target in targets)

    together = [(target,) for target in TARGETS] if architecture in CHOSEN else [TARGETS]
    return {t: min(LEARNING_RATES, key=lambda lr: score(lr, group)) for group in together for t in group}


def compare(have: dict[str, dict[str, Any]], architecture: str, stage: Stage) -> list[dict[str, Any]] | None:
    """One row for each L0; None while runs are missing."""
    found: dict[int, dict[str, Any]] = {target: {} for target in stage.targets}
    for side in sides(architecture):
        first = [task.key for task in to_choose_a_rate(architecture, side, stage)]
        if any(key not in have for key in first):
            return None
        rates = best_rates(architecture, [have[key] for key in first])
        for target in stage.targets:
            tasks = list(at_the_best_rates(architecture, side, rates, stage._replace(targets=(target,))))
            if any(task.key not in have for task in tasks):
                return None
            runs = [[have[task.key] for task in tasks if task.seed == seed] for seed in stage.seeds]
            found[target][side] = of_side(architecture, runs, target, rates[target])
    return [
        {"architecture": architecture, "l0": target, **both, **ratio(*both.values())} for target, both in found.items()
    ]


def of_side(architecture: str, seeds: list[list[dict[str, Any]]], target: int, lr: float) -> dict[str, Any]:
    """seeds: for each seed its runs. Thresholds of BatchTopK and Matryoshka miss k by some per cent: see `SLOPE`."""
    values = [at_l0(runs, target) if len(runs) > 1 else carried(runs[0], target) for runs in seeds]
    return {
        "fvu": mean(values),
        "sd": stdev(values),
        "seeds": values,
        "lr": lr,
        "l0": mean(run["l0"] for runs in seeds for run in runs) if architecture in CHOSEN else target,
        "interpolated": all(len(runs) == 1 or brackets(runs, target) for runs in seeds),
        "silent": mean(run["silent"] for runs in seeds for run in runs),
    }


SLOPE = -0.5
"""d log FVU / d log L0 where a run is carried to the L0 it was meant to have: about what all sides have around 32."""


def carried(run: dict[str, Any], target: int) -> float:
    if run["architecture"] in TWO_SITES:  # of either side: far fewer than k of their pre-activations are above 0
        return run["fvu"]
    return run["fvu"] * (target / run["l0"]) ** SLOPE


def ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Ours by theirs, paired by seed: geometric mean and its 95 % t interval."""
    logs = [math.log(a / b) for a, b in zip(ours["seeds"], theirs["seeds"], strict=True)]
    half = stats.t.ppf(0.975, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    low, middle, high = (math.exp(mean(logs) + sign * half) for sign in (-1, 0, 1))
    return {"ratio": middle, "interval": [low, high], "verdict": verdict(low, high)}


def verdict(low: float, high: float) -> str:
    """Of "ours is at least as good": the criterion of the report."""
    return "supported" if high <= 1.01 else "refuted" if low > 1.01 else "undecided"


def write_report(have: dict[str, dict[str, Any]], d_sae: int, batch: int, steps: int) -> None:
    """Write results.json, and the tables between the marks of README.md."""
    tables: dict[str, list[dict[str, Any]]] = {}
    verdicts, missing = [], []
    for stage in STAGES:
        tables[stage.name] = []
        for architecture in stage.architectures:
            peer = sides(architecture)[1]
            rows = compare(have, architecture, stage)
            missing += [] if rows else [f"{architecture} ({stage.name} stage)"]
            tables[stage.name] += rows or []
            verdicts += [
                {
                    "hypothesis": f"{architecture} at L0 {row['l0']}: FVU at most 1.01 times {peer}'s",
                    "verdict": row["verdict"],
                    "estimate": row["ratio"],
                    "interval": row["interval"],
                    "seeds": list(stage.seeds),
                    "tokens": steps * batch,
                }
                for row in rows or []
            ]
    setting = {"d_sae": d_sae, "batch": batch, "steps": steps, "versions": versions()}
    REPORT.mkdir(parents=True, exist_ok=True)
    results = {"verdicts": verdicts, "setting": setting, "rows": tables, "missing": missing}
    (REPORT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    for stage, rows in tables.items():
        fill(REPORT / "README.md", stage, table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| architecture | L0 (k) | FVU, sae_tools (lr) | FVU, other library (lr) | ratio [95 %] | at least as good |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for side in sides(row["architecture"]):
            one = row[side]
            mark = "" if one["interpolated"] else "*"
            fires = f", L0 {one['l0']:.1f}" if row["architecture"] in TWO_SITES else ""
            cells.append(f"{one['fvu']:.4f}{mark} ± {one['sd']:.4f} ({one['lr']:g}{fires})")
        low, high = row["interval"]
        ratio = f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"| {row['architecture']} | {row['l0']} | {cells[0]} | {cells[1]} | {ratio} | {row['verdict']} |")
    return "\n".join(lines)


def fill(path: Path, stage: str, text: str) -> None:
    """Put the table between that stage's marks."""
    begin, end = f"<!-- {stage} stage -->\n", "\n<!-- end -->"
    page = path.read_text()
    head, rest = page.split(begin)
    path.write_text(head + begin + text + end + rest.split(end, 1)[1])
