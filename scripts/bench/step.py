"""How long a whole training step takes on a fixed tensor, against SAELens, dictionary_learning, sparsify and the bare
encoder product.

    python scripts/bench/step.py [--json | --save] [--bench topk,relu,batchtopk,jumprelu] [--aux]
                                 [--d-in 512 --d-sae 8192 --k 32 --batch 2048 --l0 64 --repeats 11]

The first run makes .venv-peers, where it then runs itself. All contenders start from the same weights on the same
standard normal rows and run in turn, each in a process of its own; seconds are medians of the rounds. A whole step is
selection, reconstruction, loss, gradients, clipping, optimiser, decoder norms and counters, each as the library's own
loop does it (sparsify does not clip). No AuxK, unless --aux gives every contender that has it an eighth of dead
features. ReLU and JumpReLU start with a bias or threshold at which just under --l0 features fire per row, and the
learning rate is 1e-6, so that they stay that dense: L0 is measured at the end. Peak memory is what the contender's
process becomes larger by. Our process and the product's keep freed memory, as sae-train does (sae_tools.memory); the
peers' are left as they are, as in their own programs, unless --keep-freed-memory gives it to them too.

--json prints one object per line and nothing else: {"bench", "name", "tokens_per_s", "seconds", "peak_bytes"}.
--save writes reports/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from measure import environment

if __name__ == "__main__":
    environment.enter()

import torch
from contenders.build import builder, names
from contenders.start import BENCHES, Setting, make_start
from measure import peak, results
from measure.timing import interleave, paired_ratio, spread
from measure.worker import Work, Worker

from sae_tools.memory import keep_freed_memory

OURS = ("sae_tools", "sae_tools-bf16", "product")
SETTLE = 0.02
"""Seconds between two contenders, in which the threads of the one before stop waiting for more."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = parser.add_mutually_exclusive_group()
    out.add_argument("--json", action="store_true", help="one object per line on stdout")
    out.add_argument("--save", action="store_true", help="write reports/benchmarks")
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--l0", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--bench", type=lambda text: text.split(","), default=list(BENCHES))
    parser.add_argument("--aux", action="store_true", help="with AuxK wherever there is one")
    parser.add_argument("--keep-freed-memory", action="store_true", help="for the peers too")
    parser.add_argument("--only", type=lambda text: text.split(","), default=None, help="these contenders")
    args = parser.parse_args(argv)
    if unknown := set(args.bench) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    return args


def wanted(bench: str, only: list[str] | None) -> list[str]:
    return [name for name in names(bench) if only is None or name in only or name == "product"]


def worker(bench: str, name: str, setting: Setting, keep: bool, threads: int | None) -> Worker:
    """A process with one contender. The smallest setting comes first, so that what is compiled or loaded on first use
    counts as neither time nor memory."""
    make = builder(name)  # imported here, so that the fork shares it

    def build() -> Work:
        if threads:
            torch.set_num_threads(threads)
        if keep or name in OURS:
            keep_freed_memory()
        first = make(bench, make_start(setting.small()))
        for _ in range(2):
            first.step()
        del first
        start = make_start(setting)
        before = peak.baseline()
        contender = make(bench, start)

        def step() -> None:  # what it returns stays where it is
            contender.step()

        return {"step": step, "l0": contender.l0, "peak": lambda: peak.peak() - before}

    return Worker(build)


def measure(bench: str, setting: Setting, args: argparse.Namespace) -> Iterable[dict]:
    """One result for every contender of a bench, the product's included."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(bench, name, setting, args.keep_freed_memory, args.threads))
            for name in wanted(bench, args.only)
        }
        work = {name: partial(one.do, "step") for name, one in workers.items()}
        seconds = interleave(work, args.repeats, settle=SETTLE)
        l0 = {name: None if name == "product" else one.do("l0") for name, one in workers.items()}
        memory = {name: one.do("peak") for name, one in workers.items()}
    for name, times in seconds.items():
        found = spread(times)
        yield {
            "bench": bench,
            "name": name,
            "tokens_per_s": setting.batch / found.median,
            "seconds": found.median,
            "low": found.low,
            "high": found.high,
            "runs": found.n,
            "of_product": paired_ratio(times, seconds["product"]),
            "of_saelens": paired_ratio(seconds["saelens"], times) if "saelens" in seconds else None,
            "of_sparsify": paired_ratio(seconds["sparsify"], times) if "sparsify" in seconds else None,
            "l0": l0[name],
            "peak_bytes": memory[name],
            "times": times,
        }


def pooled_product(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The product's rounds of all benches as one."""
    products = [result for result in found if result["name"] == "product"]
    pooled = spread([seconds for result in products for seconds in result["times"]])
    tokens = products[0]["tokens_per_s"] * products[0]["seconds"]
    return {
        **products[0],
        "bench": "product",
        "tokens_per_s": tokens / pooled.median,
        "seconds": pooled.median,
        "low": pooled.low,
        "high": pooled.high,
        "runs": pooled.n,
        "of_product": 1.0,
        "of_saelens": None,
        "of_sparsify": None,
    }


def line(result: dict[str, Any]) -> str:
    """What --json prints of a result."""
    return json.dumps({key: result[key] for key in ("bench", "name", "tokens_per_s", "seconds", "peak_bytes")})


def table(found: list[dict[str, Any]]) -> str:
    head = f"{'bench':10} {'':20} {'ms':>9} {'quartiles':>17} {'tokens/s':>10} {'÷ product':>9} {'× SAELens':>9} "
    rows = [head + f"{'L0':>6} {'MiB':>7}"]
    for r in found:
        quartiles = f"{1e3 * r['low']:.1f}–{1e3 * r['high']:.1f}"
        times = f"{r['of_saelens']:.2f}" if r["of_saelens"] else ""
        l0 = f"{r['l0']:.1f}" if r["l0"] is not None else ""
        mib = f"{r['peak_bytes'] / 2**20:,.0f}"
        rows.append(
            f"{r['bench']:10} {r['name']:20} {1e3 * r['seconds']:9.1f} {quartiles:>17} {r['tokens_per_s']:10,.0f} "
            f"{r['of_product']:9.2f} {times:>9} {l0:>6} {mib:>7}"
        )
    return "\n".join(rows)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    setting = Setting(args.d_in, args.d_sae, args.k, args.batch, args.l0, args.aux)
    found = [result for bench in args.bench for result in measure(bench, setting, args)]
    return [*(result for result in found if result["name"] != "product"), pooled_product(found)]


def saved(args: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What results.json keeps: no single times."""
    sizes = {key: getattr(args, key) for key in ("d_in", "d_sae", "k", "batch", "l0", "aux")}
    kept = [{key: value for key, value in result.items() if key != "times"} for result in found]
    return {"setting": sizes, "rounds": args.repeats, "results": kept}


def main() -> None:
    args = arguments()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peers print is no result
    found = run(args)
    if args.json:
        print(*map(line, found), sep="\n", file=answer)
    else:
        print(table(found), file=answer)
    if args.save:
        section = "step" + "_aux" * args.aux + "_kept" * args.keep_freed_memory
        results.save(section, saved(args, found))
    answer.close()


if __name__ == "__main__":
    main()
