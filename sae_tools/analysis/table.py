"""The fidelity figures as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

CLASSES = ("dead", "ultra-\nrare", "dense")


def fidelity_table(fidelity: dict[str, dict[str, Any]]) -> Table:
    """One row per dictionary; FVU columns for every space that any of them is measured in."""
    spaces = list(dict.fromkeys(space for entry in fidelity.values() for space in entry["fvu"]))
    some = next(iter(fidelity.values()))
    table = Table(title=f"Fidelity on {some['tokens']:,} held-out tokens", title_justify="left", pad_edge=False)
    table.add_column("dictionary")
    table.add_column("L0", justify="right")
    for space in spaces:
        table.add_column(f"FVU in\n{space}", justify="right")
    headings = (
        "CE recovered\nmean | zero",
        "ablation costs\nmean | zero",
        "KL",
        "dead",
        "ultra-\nrare",
        "dense",
        "tokens/s",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, entry in fidelity.items():
        fvu = entry["fvu"]
        table.add_row(
            name,
            f"{entry['l0']:.1f}",
            *(f"{fvu[space]:.3f}" if space in fvu else "–" for space in spaces),
            f"{entry['ce_recovered']['mean']:.3f} | {entry['ce_recovered']['zero']:.3f}",
            f"{entry['ablation_cost']['mean']:.3f} | {entry['ablation_cost']['zero']:.3f}",
            f"{entry['kl']:.4f}",
            *(f"{entry[key]:,}" for key in ("dead", "ultra_rare", "dense")),
            f"{entry['tokens_per_s']:,.0f}" if entry.get("tokens_per_s") else "–",
        )
    return table


LEGEND = (
    "FVU: variance unexplained. CE recovered: share of the ablation's cost (in nats) that splicing the reconstruction "
    "in gives back; 1 is perfect. dead: fired on no held-out token; ultra-rare: on less than {ultra:g} of them; dense: "
    "on more than {dense:g}."
)
