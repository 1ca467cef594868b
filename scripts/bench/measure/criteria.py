"""The targets that the measurements are held against, computed from results.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FIRST_SETTING = {"d_in": 512, "d_sae": 8192, "k": 32, "batch": 2048, "aux": False}
MAX_L0 = 64


@dataclass(frozen=True)
class Criterion:
    target: str
    found: str
    met: bool | None
    """None: there is no measurement that it can be judged by."""


def criteria(results: dict[str, Any]) -> list[Criterion]:
    return [*step_criteria(results), *run_criteria(results), *job_criteria(results), *gpu_criteria(results)]


def judge(target: str, value: float | None, holds: Callable[[float], bool], found: str = "{:.2f}") -> Criterion:
    if value is None:
        return Criterion(target, "not measured", None)
    return Criterion(target, found.format(value), holds(value))


def step_result(results: dict[str, Any], bench: str, name: str) -> dict[str, Any] | None:
    """What the first setting gave; None where it was not measured."""
    section = results.get("step")
    if not section or any(section["setting"].get(key) != value for key, value in FIRST_SETTING.items()):
        return None
    return next((r for r in section["results"] if (r["bench"], r["name"]) == (bench, name)), None)


def step_criteria(results: dict[str, Any]) -> list[Criterion]:
    def value(bench: str, name: str, key: str) -> float | None:
        result = step_result(results, bench, name)
        return None if result is None else result.get(key)

    out = []
    for name, what, saelens, sparsify, product in (
        ("sae_tools", "fp32", 6.5, 1.5, 1.4),
        ("sae_tools-bf16", "bf16 selection", 10.0, 2.3, 0.9),
    ):
        of = {key: value("topk", name, key) for key in ("of_saelens", "of_sparsify", "of_product")}
        out += [
            judge(f"TopK, {what}: ≥ {saelens} × SAELens", of["of_saelens"], lambda v, t=saelens: v >= t, "{:.2f} ×"),
            judge(
                f"TopK, {what}: ≥ {sparsify} × sparsify", of["of_sparsify"], lambda v, t=sparsify: v >= t, "{:.2f} ×"
            ),
            judge(
                f"TopK, {what}: at most {product} of the fp32 product's time",
                of["of_product"],
                lambda v, t=product: v <= t,
            ),
        ]
    densities = [value("relu", name, "l0") for name in ("sae_tools", "saelens")]
    sparse = all(density is not None and density <= MAX_L0 for density in densities)
    out.append(
        judge(
            f"ReLU-L1 at L0 ≤ {MAX_L0}: ≥ 4 × SAELens",
            value("relu", "sae_tools", "of_saelens"),
            lambda v: v >= 4 and sparse,
            "{:.2f} × at L0 " + " and ".join("?" if d is None else f"{d:.1f}" for d in densities),
        )
    )
    for bench, what in (("batchtopk", "BatchTopK"), ("jumprelu", "JumpReLU")):
        found = value(bench, "sae_tools", "of_saelens")
        out.append(judge(f"{what}: ≥ 4 × SAELens", found, lambda v: v >= 4, "{:.2f} ×"))
    return out


def run_criteria(results: dict[str, Any]) -> list[Criterion]:
    found = results.get("end_to_end")
    if found is None:
        return [
            Criterion(target, "not measured", None)
            for target in ("End to end: ≥ 3 × SAELens's runner", "Harvest", "Buffer")
        ]
    ours, theirs = found["sae_tools"]["fvu"], found["saelens"]["fvu"]
    return [
        judge("End to end: ≥ 3 × SAELens's runner", found["ratio"], lambda v: v >= 3, "{:.2f} ×"),
        Criterion("End to end: FVU no worse", f"{ours:.4f} against {theirs:.4f}", ours <= theirs),
        judge("Harvest: ≥ 0.9 of the rate of the bare layers", found["harvest"]["of_bare"], lambda v: v >= 0.9),
        judge("Buffer: ≤ 3 % of the time", 100 * found["buffer_share"], lambda v: v <= 3, "{:.2f} %"),
    ]


def job_criteria(results: dict[str, Any]) -> list[Criterion]:
    section = results.get("scaling", {})
    jobs = section.get("dictionaries", [])
    eight = next((job["ratio"] for job in jobs if job["dictionaries"] == 8), None)
    everything = [*jobs, *section.get("models", [])]
    ratios = [job["peak_bytes"] / job["dry_run_bytes"] for job in everything]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=None)
    flat = section.get("flat") or {}
    return [
        judge("Eight dictionaries: < 1.2 × (harvest once + eight steps)", eight, lambda v: v < 1.2, "{:.2f} ×"),
        judge(
            "Peak memory within 15 % of what --dry-run says",
            worst,
            lambda v: abs(v - 1) <= 0.15,
            "at worst {:.2f} of it in " + f"{len(ratios)} jobs",
        ),
        judge(
            "Memory flat over 10,000 steps (grows by < 1 % after the first tenth)",
            flat.get("growth") if flat.get("steps", 0) >= 10_000 else None,
            lambda v: v < 0.01,
            "{:+.2%}",
        ),
    ]


def gpu_criteria(results: dict[str, Any]) -> list[Criterion]:
    cases = results.get("gpu", {}).get("cases", [])
    worst = min((case["of_best_peer"] for case in cases if case.get("of_best_peer")), default=None)
    return [judge("GPU: ≥ 3 × the best peer", worst, lambda v: v >= 3, "at least {:.2f} ×")]
