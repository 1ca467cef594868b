from __future__ import annotations

import json
import sys

import gpu
import pytest
import scaling
import step
from contenders.start import Setting


def row(name: str, times: list[float]) -> dict:
    return {
        **{"bench": "topk", "name": name, "tokens_per_s": 2048 / times[0], "seconds": times[0], "times": times},
        **{"low": times[0], "high": times[0], "runs": len(times), "of_product": 2.0, "of_saelens": None},
        **{"of_sparsify": None, "l0": None, "peak_bytes": 7},
    }


def test_a_line_of_json_has_just_what_is_promised():
    found = json.loads(step.line(row("sae_tools", [0.5])))
    assert found == {"bench": "topk", "name": "sae_tools", "tokens_per_s": 4096, "seconds": 0.5, "peak_bytes": 7}


def test_the_product_of_all_benches_is_one():
    found = step.pooled_product([row("product", [1.0, 2.0]), row("sae_tools", [9.0]), row("product", [3.0])])
    assert (found["bench"], found["seconds"], found["runs"]) == ("product", 2.0, 3)
    assert found["tokens_per_s"] == 1024


def test_results_keep_no_single_times():
    args = step.arguments(["--d-sae", "64", "--aux"])
    saved = step.saved(args, [row("sae_tools", [0.5])])
    assert saved["setting"] == {"d_in": 512, "d_sae": 64, "k": 32, "batch": 2048, "l0": 64, "aux": True}
    assert "times" not in saved["results"][0]


def test_an_unknown_bench_is_refused(capsys):
    with pytest.raises(SystemExit):
        step.arguments(["--bench", "topk,gated"])
    assert "no such bench: gated" in capsys.readouterr().err


def test_the_bound_counts_the_product_and_what_is_moved():
    setting = Setting(d_in=4, d_sae=16, k=2, batch=8)
    assert gpu.moved_bytes(setting, 4) == 2 * 4 * 4 * (2 * 4 * 16) + 2 * 4 * 8 * 16
    assert gpu.bound(setting, 1024.0, 5120.0, 4) == pytest.approx(1.0 + 1.0)


def test_the_best_peer_is_what_counts():
    cases = [
        {"name": name, "seconds": seconds}
        for name, seconds in (("sae_tools", 2.0), ("sae_tools-bf16", 1.0), ("saelens", 9.0), ("sparsify", 3.0))
    ]
    found = gpu.against_best_peer(cases)
    assert found[1]["of_best_peer"] == 3 and "of_best_peer" not in found[0]


@pytest.mark.skipif(gpu.torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert capsys.readouterr().out == gpu.WHAT + "\n"


def test_growth_is_from_the_first_tenth():
    assert scaling.growth([100, 101, 105, 104]) == pytest.approx(0.05)
    assert scaling.growth([100, 90]) == 0


def test_jobs_of_several_dictionaries_are_valid(tmp_path):
    cfg = scaling.job_config(tmp_path, "bundled", 50, scaling.JOB, 3)
    assert len(cfg.dictionaries) == 3 and cfg.training.tokens == 48 * 2048
    assert scaling.JOB["buffer"] % scaling.JOB["batch"] == 0  # fills are what the job's own harvest is made of
