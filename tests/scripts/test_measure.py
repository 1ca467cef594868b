from __future__ import annotations

import json
import mmap
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
from measure import environment, machine, peak, results
from measure.criteria import criteria
from measure.timing import interleave, paired_ratio, spread


class Clock:
    """Time that only work makes pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_contenders_take_turns_and_the_first_rounds_do_not_count():
    clock, order = Clock(), []

    def work(name: str, seconds: list[float]):
        def run() -> None:
            order.append(name)
            clock.now += seconds.pop(0)

        return run

    found = interleave({"a": work("a", [9, 9, 1, 2]), "b": work("b", [9, 9, 3, 4])}, rounds=2, warmup=2, clock=clock)
    assert found == {"a": [1, 2], "b": [3, 4]}
    assert order == ["a", "b"] * 4


def test_the_device_is_waited_for_before_and_within_the_time():
    clock = Clock()

    def synchronise() -> None:
        clock.now += 1

    found = interleave({"a": lambda: None}, rounds=3, warmup=0, synchronise=synchronise, clock=clock)
    assert found == {"a": [1, 1, 1]}


def test_spread_is_the_quartiles():
    assert spread([5, 1, 4, 2, 3]) == (2, 3, 4, 5)
    assert spread([7]) == (7, 7, 7, 1)
    with pytest.raises(ValueError):
        spread([])


def test_a_paired_ratio_is_that_of_the_same_round():
    assert paired_ratio([1, 20, 4], [1, 10, 1]) == 2  # the medians' ratio would be 4
    with pytest.raises(ValueError):
        paired_ratio([1], [1, 2])


def test_status_fields_are_read_in_bytes():
    text = "Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
    assert peak.status_bytes(text, "VmHWM") == 2 * 2**20
    with pytest.raises(KeyError):
        peak.status_bytes(text, "VmSwap")


@pytest.mark.skipif(not peak.CLEAR.exists(), reason="needs /proc")
def test_the_peak_of_a_fork_is_what_it_held_at_once():
    def hold(mebibytes: int) -> None:
        """Pages of their own: what malloc keeps of freed memory depends on what ran before in this process."""
        with mmap.mmap(-1, mebibytes * 2**20) as pages:
            for at in range(0, len(pages), mmap.PAGESIZE):
                pages[at] = 1

    def work() -> int:
        hold(80)  # before the baseline
        before = peak.baseline()
        for _ in range(3):
            hold(40)
        return peak.peak() - before

    assert 38 * 2**20 < peak.forked(work) < 60 * 2**20


def test_what_fails_in_a_fork_fails_here():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        peak.forked(lambda: 1 // 0)


def test_the_cpu_is_named():
    assert machine.cpu_model("processor\t: 0\nmodel name\t: Some CPU 3000\nflags: avx2\n") == "Some CPU 3000"
    assert machine.cpu_model("") == ""


def test_peers_are_pinned_and_not_pinned_twice():
    def pins(file: Path) -> dict[str, str]:
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        return dict(line.lower().partition(";")[0].split("==") for line in lines)

    lock, extra = pins(environment.LOCK), pins(environment.EXTRA)
    assert extra["dictionary-learning"] == "0.1.0" and extra["eai-sparsify"] == "1.3.3"
    assert lock["sae-lens"] == "6.54.12"
    assert not set(lock) & set(extra)


def test_an_environment_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        out = "WARNING: retrying\nERROR: No matching distribution found for babe==0.0.7\n"
        return subprocess.CompletedProcess(command, 1, out)

    monkeypatch.setattr(environment, "PEERS", tmp_path)
    monkeypatch.setattr(environment, "READY", tmp_path / ".ready")
    monkeypatch.setattr(environment, "subprocess", types.SimpleNamespace(run=fail, PIPE=-1, STDOUT=-2))
    assert not environment.is_ready()
    with pytest.raises(SystemExit, match="could not be made in .* No matching distribution found for babe==0.0.7$"):
        environment.make()
    assert not environment.is_ready()


def step_row(bench: str, name: str, **values: Any) -> dict[str, Any]:
    row = {"seconds": 0.1, "low": 0.09, "high": 0.11, "runs": 5, "tokens_per_s": 20_480.0, "peak_bytes": 2**20}
    ratios = {"of_product": 1.2, "of_saelens": 8.0, "of_sparsify": None, "l0": 60.0}
    return {"bench": bench, "name": name, **row, **ratios, **values}


def steps(**changes: dict[str, Any]) -> dict[str, Any]:
    """Results that meet all targets of the step, but for `changes` by bench or bench_name."""
    rows = [
        step_row("topk", "sae_tools", of_sparsify=1.8, **changes.get("topk", {})),
        step_row("topk", "sae_tools-bf16", of_product=0.8, of_saelens=11.0, of_sparsify=2.5),
        step_row("relu", "sae_tools", **changes.get("relu", {})),
        step_row("relu", "saelens", **changes.get("relu_saelens", {})),
        step_row("batchtopk", "sae_tools"),
        step_row("jumprelu", "sae_tools"),
    ]
    setting = {"d_in": 512, "d_sae": 8192, "k": 32, "batch": 2048, "l0": 64, "aux": False, **changes.get("setting", {})}
    return {"step": {"setting": setting, "rounds": 5, "results": rows}}


def judged(found: dict[str, Any], prefix: str) -> list[bool | None]:
    return [criterion.met for criterion in criteria(found) if criterion.target.startswith(prefix)]


def test_targets_are_judged_by_the_numbers():
    assert judged(steps(), "TopK") == [True] * 6
    assert judged(steps(topk={"of_saelens": 6.4}), "TopK, fp32") == [False, True, True]
    assert judged(steps(topk={"of_product": 1.41}), "TopK, fp32") == [True, True, False]
    assert judged(steps(), "ReLU") == [True]
    assert judged(steps(relu={"of_saelens": 3.9}), "ReLU") == [False]
    assert judged(steps(relu_saelens={"l0": 70.0}), "ReLU") == [False]


def test_what_was_not_measured_is_not_judged():
    assert set(judged({}, "")) == {None}
    assert judged(steps(setting={"d_sae": 4096}), "TopK") == [None] * 6
    assert set(judged(steps(), "End to end")) == {None}


def test_targets_of_runs_and_jobs():
    run = {
        "sae_tools": {"fvu": 0.30},
        "saelens": {"fvu": 0.31},
        "ratio": 3.2,
        "harvest": {"of_bare": 0.88},
        "buffer_share": 0.02,
    }
    assert judged({"end_to_end": run}, "End to end") == [True, True]
    assert judged({"end_to_end": run}, "Harvest") == [False]
    assert judged({"end_to_end": run}, "Buffer") == [True]
    jobs = [
        {"dictionaries": 1, "ratio": 1.0, "peak_bytes": 100, "dry_run_bytes": 100},
        {"dictionaries": 8, "ratio": 1.1, "peak_bytes": 80, "dry_run_bytes": 100},
    ]
    scaling = {"dictionaries": jobs, "flat": {"steps": 10_000, "growth": 0.002}}
    assert judged({"scaling": scaling}, "Eight") == [True]
    assert judged({"scaling": scaling}, "Peak") == [False]
    assert judged({"scaling": scaling}, "Memory flat") == [True]
    assert judged({"scaling": {**scaling, "flat": {"steps": 100, "growth": 0.0}}}, "Memory flat") == [None]


def test_sections_are_kept_beside_each_other_and_written_as_tables(tmp_path):
    results.save("step", steps()["step"], tmp_path)
    results.save("gpu", {"cases": [], "missing": "none"}, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found) == {"step", "gpu"} and found["step"]["machine"]["versions"]["torch"]
    page = (tmp_path / "README.md").read_text()
    assert "| topk | sae_tools | 100.0 | 90.0–110.0 | 20,480 | 1.20 | 8.00 | 60.0 | 1 |" in page
    assert "no machine with CUDA was at hand" in page and "| TopK, fp32: ≥ 6.5 × SAELens | 8.00 × | met |" in page
    results.save("step", steps(topk={"of_saelens": 5.0})["step"], tmp_path)
    assert "| TopK, fp32: ≥ 6.5 × SAELens | 5.00 × | **not met** |" in (tmp_path / "README.md").read_text()


def test_what_is_not_finite_is_null(tmp_path):
    results.save("gpu", {"cases": [], "x": float("nan"), "y": 1 / 3}, tmp_path)
    found = results.load(tmp_path)["gpu"]
    assert found["x"] is None and found["y"] == 0.333333


def test_parts_measured_alone_join_those_of_the_same_machine_only(tmp_path: Path):
    results.save("gpu", {"cases": [], "missing": "all"}, tmp_path)
    assert results.measured_here("gpu", tmp_path) == {"cases": [], "missing": "all"}
    file = tmp_path / "results.json"
    file.write_text(file.read_text().replace('"python": "', '"python": "9.'))
    assert results.measured_here("gpu", tmp_path) == {}
    assert results.measured_here("nothing", tmp_path) == {}
