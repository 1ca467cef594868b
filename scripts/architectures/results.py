"""From runs to the table: interpolation at equal L0, the best learning rate, seeds, and reports/architectures."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats
from tasks import CHOSEN, LEARNING_RATES, PENALISED, SEEDS, SIDES, TARGETS, Task, settings, to_choose_a_rate

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


def best_rate(architecture: str, runs: list[dict[str, Any]]) -> float:
    """The learning rate of the lowest FVU at k = 32, or, where L0 is no setting, of the lowest mean log FVU over the
    three L0s."""

    def score(lr: float) -> float:
        of_lr = [run for run in runs if run["lr"] == lr]
        if architecture in CHOSEN:
            return of_lr[0]["fvu"]
        return mean(math.log(at_l0(of_lr, target)) for target in TARGETS)

    return min(LEARNING_RATES, key=score)


def compare(have: dict[str, dict[str, Any]], architecture: str) -> list[dict[str, Any]] | None:
    """One row for each L0; None while runs are missing."""
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    rates = {}
    for side in SIDES:
        first = [task.key for task in to_choose_a_rate(architecture, side)]
        if any(key not in have for key in first):
            return None
        rates[side] = lr = best_rate(architecture, [have[key] for key in first])
        keys = [[Task(architecture, side, lr, s, seed).key for s in settings(architecture)] for seed in SEEDS]
        if any(key not in have for of_seed in keys for key in of_seed):
            return None
        curves[side] = [[have[key] for key in of_seed] for of_seed in keys]
    return [{"architecture": architecture, "l0": target, **figures(curves, rates, target)} for target in TARGETS]


def figures(curves: dict[str, list[list[dict]]], rates: dict[str, float], target: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, seeds in curves.items():
        values = [at_l0(runs, target) for runs in seeds]
        found[side] = {"fvu": mean(values), "sd": stdev(values), "seeds": values, "lr": rates[side]}
        found[side]["interpolated"] = all(brackets(runs, target) for runs in seeds)
        found[side]["silent"] = mean(run["silent"] for runs in seeds for run in runs)
    logs = [math.log(a / b) for a, b in zip(*(found[side]["seeds"] for side in SIDES), strict=True)]
    half = stats.t.ppf(0.975, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    ratio = [math.exp(mean(logs) + sign * half) for sign in (0, -1, 1)]
    return {**found, "ratio": ratio[0], "interval": ratio[1:], "verdict": verdict(ratio[1], ratio[2])}


def verdict(low: float, high: float) -> str:
    """Of "ours is at least as good": the criterion of the report."""
    return "supported" if high <= 1.01 else "refuted" if low > 1.01 else "undecided"


def write_report(have: dict[str, dict[str, Any]], d_sae: int, batch: int, steps: int) -> None:
    """Write results.json, and the table between the marks of README.md."""
    rows, missing = [], []
    for architecture in (*CHOSEN, *PENALISED):
        found = compare(have, architecture)
        rows += found or []
        missing += [] if found else [architecture]
    verdicts = [
        {
            "hypothesis": f"{row['architecture']} at L0 {row['l0']}: FVU at most 1.01 times SAELens's",
            "verdict": row["verdict"],
            "estimate": row["ratio"],
            "interval": row["interval"],
            "seeds": len(SEEDS),
            "tokens": steps * batch,
        }
        for row in rows
    ]
    setting = {"d_sae": d_sae, "batch": batch, "steps": steps, "versions": versions()}
    REPORT.mkdir(parents=True, exist_ok=True)
    results = {"verdicts": verdicts, "setting": setting, "rows": rows, "missing": missing}
    (REPORT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    fill(REPORT / "README.md", table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| architecture | L0 | FVU, sae_tools (lr) | FVU, SAELens (lr) | ratio [95 %] | at least as good |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = []
        for side in SIDES:
            one = row[side]
            mark = "" if one["interpolated"] else "*"
            cells.append(f"{one['fvu']:.4f}{mark} ± {one['sd']:.4f} ({one['lr']:g})")
        low, high = row["interval"]
        ratio = f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"| {row['architecture']} | {row['l0']} | {cells[0]} | {cells[1]} | {ratio} | {row['verdict']} |")
    return "\n".join(lines)


def fill(path: Path, text: str) -> None:
    """Put the table between the marks."""
    begin, end = "<!-- table -->\n", "\n<!-- end -->"
    page = path.read_text()
    head, rest = page.split(begin)
    path.write_text(head + begin + text + end + rest.split(end)[1])
