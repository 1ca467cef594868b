"""reports/benchmarks/README.md from results.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from measure.criteria import criteria

HEAD = """# Benchmarks

Written by the scripts in `scripts/bench/` from `results.json`; `make bench` measures the CPU's part again, in some
ten minutes. Run it on a machine that has nothing else to do. The definitions stand under each table.
"""
STEP = """A whole step: selection, reconstruction, loss, gradients, clipping, optimiser, decoder norms, counters, each
as the library's own loop does it (sparsify does not clip). All start from the same weights on the same standard
normal rows and run in turn, each in a process of its own; medians over rounds, quartiles beside them. Ours keeps
freed memory, as sae-train does, and so does the product's process; the peers' are as their own programs leave them.
Ratios are medians over rounds of times in the same round; `÷ product` is the step's time over that of the bare fp32
product x @ W_enc. fp32, no autocast; `sae_tools-bf16` chooses candidates by a bf16 product and evaluates them in
fp32. ReLU is the form with a free decoder and the L1 penalty weighted by its norms, on all sides; ReLU and JumpReLU
begin at a bias or threshold that just under {l0} features per row exceed. L0 is measured in training, at the end.
Peak memory: what a process of its own grows by, beyond interpreter, libraries and rows."""
AUX = """The same with AuxK on every side that has it: an eighth of the features is dead, and the d_in / 2 best of them
per row reconstruct the error."""
KEPT = """The same with freed memory kept in the peers' processes too, which their own programs do not do: glibc's
malloc otherwise hands large blocks back at every step, and the kernel zeroes their pages again."""
RUN = """From raw text to the trained dictionary, each library's own estimates of scales included, loading of the
language model not; medians of {rounds} rounds, in turn, each library in a process of its own. The same documents,
site, sizes, learning rates and number of rows. SAELens runs its default class of models, HookedTransformer, with the
same weights, and its default buffer, a fraction of ours. No feature can be dead before the end, so AuxK costs neither
anything. FVU = sum ‖x − x̂‖² / sum ‖x − mean‖² and L0 are measured by one function on the same held-out rows."""
JOBS = """Each job in a process of its own. `÷ (harvest + n steps)`: time of the job over that of harvesting its rows
once plus taking its n × steps steps, each measured alone, checkpoints left out everywhere. Peak: of the whole process;
`--dry-run` is what `sae-train --dry-run` says of that job."""
NO_GPU = """Not measured: no machine with CUDA was at hand. Missing are, for d_in 768 and 4,096, d_sae 32k and 131k and
k 32 and 64: tokens/s of sae_tools and of its peers, the bound that the measured matrix rate and bandwidth set, and the
share of it that is reached."""


def render(results: dict[str, Any]) -> str:
    parts = [HEAD, targets(results)]
    if section := results.get("step"):
        parts.append(steps("Training step", section, STEP.format(l0=section["setting"]["l0"])))
    if section := results.get("step_aux"):
        parts.append(steps("Training step with AuxK", section, AUX))
    if section := results.get("step_kept"):
        parts.append(steps("Training step, freed memory kept by all", section, KEPT))
    if section := results.get("end_to_end"):
        parts.append(runs(section))
    if section := results.get("scaling"):
        parts.append(scaling(section))
    section = results.get("gpu", {})
    parts.append(gpu(section) if section.get("cases") else f"## GPU\n\n{NO_GPU}\n")
    return "\n".join(parts)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine(section: dict[str, Any]) -> str:
    m = section["machine"]
    flags = f" ({', '.join(m['cpu_flags'])})" if m["cpu_flags"] else ""
    gpu_name = f", {m['gpu']}, CUDA {m['cuda']}" if m.get("gpu") else ""
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return (
        f"{m['date']}; {m['cpu']}{flags}, {m['cores']} cores, {m['threads']} threads, {m['memory_gib']:.0f} GiB"
        f"{gpu_name}; {versions}."
    )


def targets(results: dict[str, Any]) -> str:
    says = {True: "met", False: "**not met**", None: "not measured"}
    rows = [(c.target, c.found, says[c.met]) for c in criteria(results)]
    return f"## Targets\n\n{markdown(('target', 'found', ''), rows)}\n"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def steps(title: str, section: dict[str, Any], words: str) -> str:
    s = section["setting"]
    head = ("", "contender", "ms", "quartiles", "tokens/s", "÷ product", "× SAELens", "L0", "peak MiB")
    rows = [
        (
            r["bench"],
            r["name"],
            f"{1e3 * r['seconds']:.1f}",
            f"{1e3 * r['low']:.1f}–{1e3 * r['high']:.1f}",
            f"{r['tokens_per_s']:,.0f}",
            number(r["of_product"], ".2f"),
            number(r["of_saelens"], ".2f"),
            number(r["l0"], ".1f"),
            "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.0f}",
        )
        for r in section["results"]
    ]
    sizes = f"d_in {s['d_in']}, d_sae {s['d_sae']:,}, k {s['k']}, batch {s['batch']:,}; {section['rounds']} rounds"
    return f"## {title}\n\n{sizes}.\n\n{markdown(head, rows)}\n\n{words}\n\n{machine(section)}\n"


def runs(section: dict[str, Any]) -> str:
    s, ours = section["setting"], section["sae_tools"]
    rows = [
        (name, *(f"{section[name][key]:{form}}" for key, form in columns))
        for name, columns in (
            (name, (("tokens_per_s", ",.0f"), ("seconds", ".1f"), ("fvu", ".4f"), ("l0", ".1f")))
            for name in ("sae_tools", "saelens")
        )
    ]
    harvest = section["harvest"]
    rates = [(name, f"{rate:,.0f}") for name, rate in harvest["tokens_per_s"].items()]
    share = 100 * section["buffer_share"]
    where = (
        f"The bundled model, {s['site']}, d_sae {s['d_sae']:,}, k {s['k']}, batch {s['batch']:,}, "
        f"{s['tokens']:,} tokens. sae_tools is {section['ratio']:.2f} × as fast."
    )
    parts = ", ".join(f"{name} {ours[key]:.1f} s" for name, key in (("text", "text"), ("harvest", "harvest")))
    inside = (
        f"Of sae_tools' {ours['seconds']:.1f} s: before the first step {ours['start']:.1f} s, then {parts}, "
        f"buffer {ours['buffer']:.2f} s ({share:.1f} %)."
    )
    layers = (
        f"Harvest runs at {harvest['of_bare']:.2f} of the rate of the bare Hugging Face layers up to the site "
        f"({harvest['rounds']} rounds, in turn):"
    )
    table = markdown(("", "tokens/s", "seconds", "FVU", "L0"), rows)
    words = RUN.format(rounds=section["rounds"])
    rates_table = markdown(("", "tokens/s"), rates)
    return (
        f"## End to end\n\n{where}\n\n{table}\n\n{words} {inside}\n\n{layers}\n\n{rates_table}\n\n{machine(section)}\n"
    )


def scaling(section: dict[str, Any]) -> str:
    parts = ["## Scaling\n"]
    for key, title in (("d_sae", "d_sae"), ("batch", "batch"), ("k", "k")):
        if rows := section.get(key):
            s = section["setting"]
            others = ", ".join(f"{name} {value:,}" for name, value in s.items() if name != key)
            table = markdown(
                (title, "tokens/s", "÷ product", "peak MiB"),
                [
                    (
                        f"{r[key]:,}",
                        f"{r['tokens_per_s']:,.0f}",
                        f"{r['of_product']:.2f}",
                        f"{r['peak_bytes'] / 2**20:,.0f}",
                    )
                    for r in rows
                ],
            )
            parts.append(
                f"TopK step against {title} ({others}, precision of selection: {section['selection']}):\n\n{table}\n"
            )
    for key, first in (("dictionaries", "dictionaries"), ("models", "model")):
        if rows := section.get(key):
            table = markdown(
                (first, "rows/s", "÷ (harvest + n steps)", "peak MiB", "--dry-run MiB"),
                [
                    (
                        str(r[first]),
                        f"{r['tokens_per_s']:,.0f}",
                        f"{r['ratio']:.2f}",
                        f"{r['peak_bytes'] / 2**20:,.0f}",
                        f"{r['dry_run_bytes'] / 2**20:,.0f}",
                    )
                    for r in rows
                ],
            )
            parts.append(f"{section['job']}\n\n{table}\n" if key == "dictionaries" else f"{table}\n")
    parts.append(JOBS + "\n")
    if flat := section.get("flat"):
        parts.append(
            f"Over {flat['steps']:,} steps resident memory grows by {flat['growth']:+.2%} after the first tenth.\n"
        )
    return "\n".join([*parts, machine(section) + "\n"])


def gpu(section: dict[str, Any]) -> str:
    rows = [
        (
            f"{c['d_in']:,}",
            f"{c['d_sae']:,}",
            str(c["k"]),
            c["name"],
            f"{1e3 * c['seconds']:.2f}",
            f"{c['tokens_per_s']:,.0f}",
            number(c.get("of_best_peer"), ".2f"),
            number(c.get("of_bound"), ".2f"),
            f"{c['peak_bytes'] / 2**20:,.0f}",
        )
        for c in section["cases"]
    ]
    head = ("d_in", "d_sae", "k", "contender", "ms", "tokens/s", "× best peer", "of bound", "peak MiB")
    words = (
        f"Measured: {section['tf32_flops'] / 1e12:,.0f} TFLOP/s in TF32 and {section['bf16_flops'] / 1e12:,.0f} in "
        f"bf16 products of the encoder's shape, {section['bandwidth'] / 1e12:.2f} TB/s copying. Bound: the product at "
        "that rate plus one pass over what has to be read or written (weights, gradients and Adam's moments; "
        "pre-activations once each way)."
    )
    return f"## GPU\n\nTopK, batch {section['batch']:,}.\n\n{markdown(head, rows)}\n\n{words}\n\n{machine(section)}\n"
