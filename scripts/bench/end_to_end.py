"""From text to a trained TopK dictionary: sae_tools' job against SAELens's runner, on the bundled language model.

    python scripts/bench/end_to_end.py [--save] [--tokens 327680] [--rounds 2] [--d-sae 4096 --k 32 --batch 2048]

Both get the same documents as raw text, the same site, sizes, learning rates and number of rows, and run in turn, each
in a process of its own (in the peers' environment, made on first use): ours keeps freed memory, as sae-train does, and
SAELens's is as its own programs leave it. The clock runs from text to the trained dictionary, each library's
own estimates of scales included; loading the language model is not. SAELens runs its default class of models (a
HookedTransformer with our weights) and its default buffer, which is a fraction of ours. Neither has dead features
before the end, so AuxK costs neither anything. FVU and L0 of both are measured by one function on the same held-out
rows. Also: which share of the time our buffer takes (harvest and text not counted), and the rate of harvest against the
bare Hugging Face layers (scripts/bench/harvest.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from measure import environment

if __name__ == "__main__":
    environment.enter()

import torch
from contenders.runs import (
    CHARACTERS_PER_TOKEN,
    Outcome,
    RunSetting,
    heldout_rows,
    hooked_transformer,
    job_config,
    run_ours,
    run_saelens,
    temporary,
    write_text,
)
from harvest import compare
from measure import results
from measure.worker import Work, Worker

from sae_tools.memory import keep_freed_memory
from sae_tools.models.load import load_model
from sae_tools.models.sites import resolve_site


def our_work(setting: RunSetting, small: RunSetting, text: Path, folder: Path, heldout: int) -> Work:
    keep_freed_memory()  # as sae-train does
    model = load_model("bundled")
    rows = heldout_rows(model, job_config(setting, text, folder), heldout)
    return {
        name: partial(run_ours, job_config(s, text, folder), model, rows)
        for name, s in {"warm": small, "run": setting}.items()
    }


def their_work(
    setting: RunSetting, small: RunSetting, text: Path, folder: Path, texts: list[str], heldout: int
) -> Work:
    model = load_model("bundled")
    site = resolve_site(model, setting.site)
    x = heldout_rows(model, job_config(setting, text, folder), heldout).activations[site.name]
    hooked = hooked_transformer(model)
    return {
        name: partial(run_saelens, s, hooked, texts, site.hook_name, site.width, x)
        for name, s in {"warm": small, "run": setting}.items()
    }


def run(setting: RunSetting, rounds: int, heldout: int, harvest_rounds: int) -> dict[str, Any]:
    """Everything as JSON values: every run, and what is said of them together."""
    small = RunSetting(**{**vars(setting), "tokens": 4 * setting.batch, "estimate_rows": 2 * setting.batch})
    runs: dict[str, list[Outcome]] = {"sae_tools": [], "saelens": []}
    with temporary() as name:
        folder = Path(name)
        text = folder / "text.jsonl"
        texts = write_text(text, CHARACTERS_PER_TOKEN * (setting.tokens + setting.estimate_rows))
        ours = Worker(partial(our_work, setting, small, text, folder, heldout))
        theirs = Worker(partial(their_work, setting, small, text, folder, texts, heldout))
        with ours, theirs:
            for worker in (ours, theirs):  # compiles and does not count
                worker.do("warm")
            for turn in range(rounds):
                runs["sae_tools"].append(ours.do("run"))
                runs["saelens"].append(theirs.do("run"))
                rates = [found[-1]["tokens_per_s"] for found in runs.values()]
                print(f"round {turn + 1}: sae_tools {rates[0]:,.0f}, SAELens {rates[1]:,.0f} tokens/s", file=sys.stderr)
    keep_freed_memory()
    model = load_model("bundled")
    assert model.folder is not None
    harvest = compare(str(model.folder), setting.site, 16, setting.context, harvest_rounds)
    return summary(setting, runs, harvest, 16 * setting.context)


def summary(
    setting: RunSetting, runs: dict[str, list[Outcome]], harvest: dict[str, list[float]], harvest_tokens: int
) -> dict[str, Any]:
    """Medians over rounds, and the ratios of the same rounds."""
    middle = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    both = zip(runs["sae_tools"], runs["saelens"], strict=True)
    rates = {name: harvest_tokens / statistics.median(times) for name, times in harvest.items()}
    return {
        "setting": vars(setting),
        "rounds": len(runs["saelens"]),
        "runs": {name: [dict(run) for run in found] for name, found in runs.items()},
        **middle,
        "ratio": statistics.median(ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in both),
        "buffer_share": middle["sae_tools"]["buffer_share"],
        "harvest": {
            "tokens_per_s": rates,
            "of_bare": statistics.median(b / h for b, h in zip(harvest["bare"], harvest["harvest"], strict=True)),
            "rounds": len(harvest["bare"]),
        },
    }


def table(found: dict[str, Any]) -> str:
    lines = [f"{'':12}{'tokens/s':>10}{'seconds':>9}{'FVU':>8}{'L0':>7}"]
    for name in ("sae_tools", "saelens"):
        r = found[name]
        lines.append(f"{name:12}{r['tokens_per_s']:10,.0f}{r['seconds']:9.1f}{r['fvu']:8.4f}{r['l0']:7.1f}")
    ours = found["sae_tools"]
    seconds = ", ".join(f"{key} {ours[key]:.2f} s" for key in ("start", "text", "harvest", "buffer"))
    lines.append(f"ratio {found['ratio']:.2f}; of sae_tools' time: {seconds} ({100 * ours['buffer_share']:.2f} %)")
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in found["harvest"]["tokens_per_s"].items())
    lines.append(f"harvest, tokens/s: {rates}; {found['harvest']['of_bare']:.2f} of bare")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write reports/benchmarks")
    parser.add_argument("--tokens", type=int, default=RunSetting.tokens)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--d-sae", type=int, default=RunSetting.d_sae)
    parser.add_argument("--k", type=int, default=RunSetting.k)
    parser.add_argument("--batch", type=int, default=RunSetting.batch)
    parser.add_argument("--site", default=RunSetting.site)
    parser.add_argument("--heldout", type=int, default=32_768, help="rows on which FVU and L0 are measured")
    parser.add_argument("--harvest-rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the peer prints is no result
    setting = RunSetting(args.tokens, args.d_sae, args.k, args.batch, args.site)
    found = run(setting, args.rounds, args.heldout, args.harvest_rounds)
    print(table(found), file=answer)
    if args.save:
        results.save("end_to_end", found)
    answer.close()


if __name__ == "__main__":
    main()
