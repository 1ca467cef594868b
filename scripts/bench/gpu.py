"""Whole TopK steps on a GPU, against the peers and against the bound that the device sets.

    python scripts/bench/gpu.py [--save] [--here] [--d-in 768,4096 --d-sae 32768,131072 --k 32,64 --batch 8192]

Each contender runs alone, since several would not fit at once. The bound of a step: the encoder's product at the rate
measured for a product of that shape (TF32; bf16 where candidates are chosen in bf16), plus one pass, at the bandwidth
measured by copying, over all that has to be moved: weights, gradients and Adam's two moments read and written, the
pre-activations written and read. Peers run with TF32 allowed and in bf16 autocast, whichever they offer; the better
counts.

Without CUDA it says so and ends. --here stays in the current environment and measures what is installed in it, instead
of making .venv-peers.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from contenders.start import Setting
from measure import environment, results
from measure.timing import interleave, spread

WHAT = "The GPU's figures are missing: there is no CUDA device here."
PEERS = {
    "saelens": ("saelens", False),
    "saelens, autocast": ("saelens", True),
    "dictionary_learning": ("dictionary_learning", False),
    "dictionary_learning, autocast": ("dictionary_learning", True),
    "sparsify": ("sparsify", False),
}
MODULES = {"saelens": "sae_lens", "dictionary_learning": "dictionary_learning", "sparsify": "sparsify"}
OURS = ("sae_tools", "sae_tools-bf16")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def timed(work: Callable[[], object], rounds: int) -> list[float]:
    return interleave({"work": work}, rounds, warmup=3, synchronise=torch.cuda.synchronize)["work"]


def matrix_rate(setting: Setting, dtype: torch.dtype) -> float:
    """Operations per second of the encoder's product, [batch, d_in] @ [d_in, d_sae]."""
    x = torch.randn(setting.batch, setting.d_in, device="cuda", dtype=dtype)
    W = torch.randn(setting.d_in, setting.d_sae, device="cuda", dtype=dtype)
    out = torch.empty(setting.batch, setting.d_sae, device="cuda", dtype=dtype)
    seconds = spread(timed(lambda: torch.mm(x, W, out=out), 20)).median
    return 2 * setting.batch * setting.d_in * setting.d_sae / seconds


def bandwidth() -> float:
    """Bytes per second, read and written, of a copy of 1 GiB."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / spread(timed(lambda: target.copy_(source), 20)).median


def moved_bytes(setting: Setting, itemsize: int) -> int:
    """What a step has to read and write: both weights with gradient and two moments in fp32, each read and written
    once, and the pre-activations, in numbers of `itemsize` bytes."""
    parameters = 2 * setting.d_in * setting.d_sae
    return 2 * 4 * 4 * parameters + 2 * itemsize * setting.batch * setting.d_sae


def bound(setting: Setting, flops: float, bytes_per_s: float, itemsize: int) -> float:
    """Seconds that a step takes at least."""
    product = 2 * setting.batch * setting.d_in * setting.d_sae
    return product / flops + moved_bytes(setting, itemsize) / bytes_per_s


def contender_seconds(name: str, setting: Setting, rounds: int) -> tuple[list[float], int] | None:
    """(seconds, bytes allocated at the peak beyond rows and initial weights); None where memory does not suffice."""
    from contenders.build import builder
    from contenders.start import make_start

    gc.collect()
    torch.cuda.empty_cache()
    try:
        start = make_start(setting)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender = builder(name)("topk", start)
        seconds = timed(contender.step, rounds)
    except torch.OutOfMemoryError:
        return None
    return seconds, torch.cuda.max_memory_allocated() - before


def measure(setting: Setting, rounds: int, bytes_per_s: float) -> tuple[list[dict[str, Any]], float, float]:
    """(a case for every contender, TF32 rate, bf16 rate)."""
    tf32, bf16 = matrix_rate(setting, torch.float32), matrix_rate(setting, torch.bfloat16)
    cases, who = [], {name: (name, False) for name in OURS} | PEERS
    for label, (name, autocast) in who.items():
        if name in MODULES and importlib.util.find_spec(MODULES[name]) is None:
            print(f"{name} is left out: it is not installed.", file=sys.stderr)
            continue
        found = contender_seconds(name, replace(setting, autocast=autocast), rounds)
        if found is None:
            print(f"{label} is left out at d_in {setting.d_in}, d_sae {setting.d_sae}: out of memory.", file=sys.stderr)
            continue
        low, median, high, n = spread(found[0])
        least = bound(setting, *((bf16, bytes_per_s, 2) if name == "sae_tools-bf16" else (tf32, bytes_per_s, 4)))
        case = {
            **{"d_in": setting.d_in, "d_sae": setting.d_sae, "k": setting.k, "name": label},
            **{"seconds": median, "low": low, "high": high, "runs": n},
            **{"tokens_per_s": setting.batch / median, "peak_bytes": found[1]},
        }
        cases.append(case | ({"of_bound": least / median} if name in OURS else {}))
        print(f"{label}: {1e3 * median:.2f} ms", file=sys.stderr)
    return against_best_peer(cases), tf32, bf16


def against_best_peer(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times as fast as the fastest peer ours are; the faster of ours is what counts, and carries it."""
    peers = [case["seconds"] for case in cases if case["name"] not in OURS]
    mine = [case for case in cases if case["name"] in OURS]
    if peers and mine:
        fastest = min(mine, key=lambda case: case["seconds"])
        fastest["of_best_peer"] = min(peers) / fastest["seconds"]
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write reports/benchmarks")
    parser.add_argument("--here", action="store_true", help="stay in this environment")
    parser.add_argument("--d-in", type=numbers, default=[768, 4096])
    parser.add_argument("--d-sae", type=numbers, default=[32768, 131072])
    parser.add_argument("--k", type=numbers, default=[32, 64])
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(WHAT)
        if args.save and not results.load().get("gpu", {}).get("cases"):
            results.save("gpu", {"cases": [], "missing": WHAT})
        return
    if not args.here:
        environment.enter()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peers print is no result
    torch.set_float32_matmul_precision("high")
    found: dict[str, Any] = {"batch": args.batch, "bandwidth": bandwidth(), "cases": []}
    for d_in, d_sae, k in itertools.product(args.d_in, args.d_sae, args.k):
        setting = Setting(d_in, d_sae, k, args.batch, device="cuda")
        cases, tf32, bf16 = measure(setting, args.rounds, found["bandwidth"])
        found["cases"] += cases
        found["tf32_flops"] = max(found.get("tf32_flops", 0.0), tf32)
        found["bf16_flops"] = max(found.get("bf16_flops", 0.0), bf16)
    for case in found["cases"]:
        share = f"{case['of_bound']:.2f} of the bound" if "of_bound" in case else ""
        sizes = f"{case['d_in']:>5} {case['d_sae']:>7} {case['k']:>3}"
        print(f"{sizes} {case['name']:30} {1e3 * case['seconds']:9.2f} ms  {share}", file=answer)
    if args.save:
        results.save("gpu", found)
    answer.close()


if __name__ == "__main__":
    main()
