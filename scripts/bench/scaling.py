"""How speed and memory of sae_tools grow: with d_sae, batch, k, the number of dictionaries in a job, and the language
model.

    python scripts/bench/scaling.py [--save] [--quick] [--only d_sae,batch,k,dictionaries,models,flat]

Every case runs in a process of its own, which also tells its peak of resident memory.

    d_sae, batch, k    whole TopK steps on a fixed tensor, in turn with the bare fp32 product
    dictionaries       a job of n equal dictionaries on one site, against harvesting its rows once plus n × steps steps
    models             a job of one dictionary on language models of random weights (scripts/bench/harvest.py's shapes;
                       not with --quick)
    flat               resident memory over 10,000 small steps

Jobs read random tokens. --quick takes fewer sizes and leaves out `models` and `flat`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from contenders.start import Setting
from measure import results

BASE = {"d_in": 512, "d_sae": 8192, "k": 32, "batch": 2048}
SWEEPS = {
    "d_sae": [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072],
    "batch": [256, 512, 1024, 2048, 4096, 8192, 16384],
    "k": [8, 16, 32, 64, 128, 256],
}
QUICK_SWEEPS = {"d_sae": [1024, 8192, 32768], "batch": [512, 8192], "k": [8, 128]}
JOB = {"d_sae": 4096, "k": 32, "batch": 2048, "steps": 48, "buffer": 32768, "context": 256, "site": "mlp_out@2"}
FLAT = {"d_sae": 512, "k": 8, "batch": 128, "steps": 10_000, "buffer": 8192, "context": 64, "site": "mlp_out@0"}
HELDOUT_TOKENS = 49_152
"""Enough for the measurement at the end of a job to reach its peak of memory: several times the logits that it holds at
once (analysis/fidelity.py)."""
KINDS = (*SWEEPS, "dictionaries", "models", "flat")


def write_tokens(path: Path, vocabulary: int, documents: int = 400, length: int = 600) -> None:
    """Random documents, tokenised."""
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(documents):
            file.write(json.dumps({"tokens": [draw.randrange(1, vocabulary) for _ in range(length)]}) + "\n")


def job_config(folder: Path, model: str, vocabulary: int, sizes: dict[str, Any], dictionaries: int) -> Any:
    from sae_tools.config import JobConfig

    write_tokens(folder / "tokens.jsonl", vocabulary)
    one = {
        "site": sizes["site"],
        "d_sae": sizes["d_sae"],
        "architecture": {"kind": "topk", "k": sizes["k"], "dead_after_tokens": 10**9},
    }
    return JobConfig.model_validate(
        {
            "name": "scaling",
            "runs_dir": str(folder),
            "model": {"name": model},
            "data": {
                "source": str(folder / "tokens.jsonl"),
                "token_column": "tokens",
                "bos": "none",
                "context_length": sizes["context"],
                "shuffle_characters": 10**6,
            },
            "buffer": {"rows": sizes["buffer"]},
            "dictionaries": {f"d{i}": one for i in range(dictionaries)},
            "training": {
                "tokens": sizes["steps"] * sizes["batch"],
                "batch_size": sizes["batch"],
                "estimate_rows": 4 * sizes["batch"],
                "checkpoints": 1,
            },
            "fidelity": {"tokens": sizes.get("heldout", HELDOUT_TOKENS)},
        }
    )


# ----------------------------------------------------------------------------------------- in processes of their own


def work(case: dict[str, Any]) -> dict[str, Any]:
    from sae_tools.memory import keep_freed_memory

    keep_freed_memory()
    return {"step": step_case, "job": job_case, "dry run": dry_run_case}[case["kind"]](case)


def step_case(case: dict[str, Any]) -> dict[str, Any]:
    """A TopK step and the product in turn; memory before the product is there."""
    from contenders import ours
    from contenders.build import product
    from contenders.start import make_start
    from measure import peak
    from measure.timing import interleave, paired_ratio, spread

    setting = Setting(**case["setting"])
    ours.build("topk", make_start(setting.small()), case["selection"]).step()
    start = make_start(setting)
    before = peak.baseline()
    contender = ours.build("topk", start, case["selection"])
    for _ in range(2):
        contender.step()
    grown = peak.peak() - before
    seconds = interleave({"step": contender.step, "product": product(start).step}, case["rounds"], warmup=1)
    found = spread(seconds["step"])
    return {
        "seconds": found.median,
        "low": found.low,
        "high": found.high,
        "tokens_per_s": setting.batch / found.median,
        "of_product": paired_ratio(seconds["step"], seconds["product"]),
        "peak_bytes": grown,
    }


def job_case(case: dict[str, Any]) -> dict[str, Any]:
    """A job, with its held-out figures, which are not timed; then its harvest alone and the steps of one of its
    dictionaries alone."""
    import time

    import torch
    from contenders.runs import Silent
    from harvest import SHAPES, random_model
    from measure import peak
    from measure.timing import interleave, spread
    from rich.console import Console

    import sae_tools.training.loop as loop
    from sae_tools.training.guard import Guard
    from sae_tools.training.job import open_buffer, open_stream
    from sae_tools.training.run import evaluate
    from sae_tools.training.start import start_job

    torch.manual_seed(0)
    sizes, shape = case["sizes"], case["shape"]
    folder = Path(random_model(shape))
    cfg = job_config(folder, str(folder), SHAPES[shape]["vocab_size"], sizes, case["dictionaries"])
    saving, resident = 0.0, []
    save = loop.save_checkpoint

    def timed_save(*args: Any, **kwargs: Any) -> None:
        nonlocal saving
        began = time.perf_counter()
        save(*args, **kwargs)
        saving += time.perf_counter() - began

    class Watch(Silent):
        def update(self, tokens: int) -> None:
            if tokens % (sizes["steps"] // 10 * sizes["batch"] or 1) == 0:
                resident.append(peak.resident())

    loop.save_checkpoint = timed_save
    job = start_job(cfg)
    began = time.perf_counter()
    loop.train_job(job, Watch())
    seconds = time.perf_counter() - began - saving
    if case.get("alone", True):
        evaluate(job, Console(stderr=True), lambda: False)  # a part of every job, and of what a dry run foresees
    highest = peak.peak()
    job.close()
    out = {
        "dictionaries": case["dictionaries"],
        "seconds": seconds,
        "tokens_per_s": job.tokens / seconds,
        "peak_bytes": highest,
        "resident": resident,
    }
    if case.get("alone", True):
        trainee, guard = job.trainees[0], Guard(1, job.device)
        buffer = open_buffer(cfg, job.model, [trainee.site], open_stream(cfg, job.model))
        rows = next(buffer)  # the first fill belongs to the harvest

        def step() -> None:
            x = trainee.rows_in_space(rows)
            proposal = trainee.propose(x, 0)
            guard.check(0, [x], [proposal])
            trainee.apply(proposal, 0, job.steps, len(rows), guard.frozen)

        out["step_seconds"] = spread(interleave({"step": step}, 15)["step"]).median
        buffer = open_buffer(cfg, job.model, [trainee.site], open_stream(cfg, job.model))
        began = time.perf_counter()
        for _ in range(job.steps):
            next(buffer)
        out["harvest_seconds"] = time.perf_counter() - began
        whole = out["harvest_seconds"] + case["dictionaries"] * job.steps * out["step_seconds"]
        out["ratio"] = seconds / whole
    return out


def dry_run_case(case: dict[str, Any]) -> dict[str, Any]:
    """What a dry run says of a job's memory. It looks at its own process, so it needs one that has done nothing yet."""
    from harvest import SHAPES, random_model

    from sae_tools.training.estimate import estimate_job

    folder = Path(random_model(case["shape"]))
    cfg = job_config(folder, str(folder), SHAPES[case["shape"]]["vocab_size"], case["sizes"], case["dictionaries"])
    return {"dry_run_bytes": estimate_job(cfg).peak_bytes}


# ------------------------------------------------------------------------------------------------------ in this process


def in_process(case: dict[str, Any]) -> dict[str, Any]:
    """What `work` returns, in a process of its own. SystemExit with its last line where that fails."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def whole_job(case: dict[str, Any]) -> dict[str, Any]:
    """A job, and in another process what a dry run says of it."""
    return in_process({"kind": "job", **case}) | in_process({"kind": "dry run", **case})


def growth(resident: list[int]) -> float:
    """Of resident memory from a tenth of the steps on to its highest after that, as a share."""
    return max(resident) / resident[0] - 1


def run(only: list[str], quick: bool, rounds: int, selection: str) -> dict[str, Any]:
    found: dict[str, Any] = {"setting": BASE, "selection": selection}

    def say(what: str, case: dict[str, Any]) -> dict[str, Any]:
        print(f"{what}: {case['tokens_per_s']:,.0f} tokens/s, {case['peak_bytes'] / 2**20:,.0f} MiB", file=sys.stderr)
        return case

    for key, values in (QUICK_SWEEPS if quick else SWEEPS).items():
        if key in only:
            found[key] = []
            for value in values:
                case = {"kind": "step", "setting": BASE | {key: value}, "rounds": rounds, "selection": selection}
                found[key].append(say(f"{key} {value:,}", {key: value, **in_process(case)}))
    words = ", ".join(f"{key} {value}" for key, value in JOB.items())
    found["job"] = f"Jobs on a language model of random weights (4 layers, d_model 256), TopK; {words}:"
    job = {"sizes": JOB, "shape": "small"}
    if "dictionaries" in only:
        found["dictionaries"] = [
            say(f"{n} dictionaries", whole_job({**job, "dictionaries": n})) for n in ((1, 8) if quick else (1, 2, 4, 8))
        ]
    if "models" in only and not quick:
        found["models"] = [
            say(shape, {"model": shape, **whole_job({**job, "dictionaries": 1, "shape": shape, "sizes": sizes})})
            for shape, sizes in (("small", JOB), ("124M", JOB | {"steps": 16}))
        ]
    if "flat" in only and not quick:
        case = in_process({**job, "kind": "job", "sizes": FLAT, "dictionaries": 1, "alone": False})
        found["flat"] = {"steps": FLAT["steps"], "growth": growth(case["resident"]), "resident": case["resident"]}
    return found


def table(found: dict[str, Any]) -> str:
    lines = []
    for key in SWEEPS:
        for r in found.get(key, []):
            lines.append(
                f"{key:>6} {r[key]:>8,} {r['tokens_per_s']:>10,.0f} tokens/s  {r['of_product']:.2f} of the product  "
                f"{r['peak_bytes'] / 2**20:>8,.0f} MiB"
            )
    for key, first in (("dictionaries", "dictionaries"), ("models", "model")):
        for r in found.get(key, []):
            lines.append(
                f"{first:>12} {r[first]:>6} {r['tokens_per_s']:>9,.0f} rows/s  {r['ratio']:.2f} × (harvest + n steps)  "
                f"{r['peak_bytes'] / 2**20:>6,.0f} MiB, dry run {r['dry_run_bytes'] / 2**20:,.0f}"
            )
    if flat := found.get("flat"):
        lines.append(f"over {flat['steps']:,} steps memory grows by {flat['growth']:+.2%} after the first tenth")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write reports/benchmarks")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--selection", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(work(args.case)))
        return
    if unknown := set(args.only) - set(KINDS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    found = run(args.only, args.quick, args.rounds, args.selection)
    print(table(found))
    if args.save:
        results.save("scaling", results.measured_here("scaling") | found)


if __name__ == "__main__":
    main()
