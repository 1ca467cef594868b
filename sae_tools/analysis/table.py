"""The fidelity figures as a table on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table

PER_TABLE = 3
"""Dictionaries side by side; more of them make more tables, so that 80 columns suffice."""


def fidelity_tables(fidelity: dict[str, dict[str, Any]]) -> Iterator[Table]:
    """A column per dictionary; FVU rows for every space that any of them is measured in."""
    names = list(fidelity)
    spaces = list(dict.fromkeys(space for entry in fidelity.values() for space in entry["fvu"]))
    for start in range(0, len(names), PER_TABLE):
        part = {name: fidelity[name] for name in names[start : start + PER_TABLE]}
        tokens = next(iter(part.values()))["tokens"]
        table = Table(title=f"On {tokens:,} held-out tokens", title_justify="left")
        table.add_column("", no_wrap=True)
        for name in part:
            table.add_column(name, justify="right", overflow="fold")
        for label, show in rows(spaces):
            table.add_row(label, *(show(entry) for entry in part.values()))
        yield table


def rows(spaces: list[str]) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    """(label, entry → text) of every line."""
    yield "features", lambda e: f"{e['d_sae']:,}"
    yield "L0", lambda e: f"{e['l0']:.1f}"
    for space in spaces:
        yield f"FVU in {space}", lambda e, space=space: f"{e['fvu'][space]:.4f}" if space in e["fvu"] else "–"
    for baseline in ("mean", "zero"):
        yield f"CE recovered, {baseline} ablation", lambda e, b=baseline: ce_recovered(e, b)
    for baseline in ("mean", "zero"):
        yield f"{baseline} ablation costs (nats)", lambda e, b=baseline: f"{e['ablation_cost'][b]:.4f}"
    yield "KL of the splice (nats)", lambda e: f"{e['kl']:.4f}"
    for key in ("dead", "ultra_rare", "dense"):
        yield key.replace("_", "-"), lambda e, key=key: f"{e[key]:,}"
    yield "training tokens", lambda e: f"{e['training_tokens']:,}"
    yield "passes over the text", lambda e: f"{e['text_passes']}"
    yield "tokens/s (whole job)", lambda e: f"{e['tokens_per_s']:,.0f}"


def ce_recovered(entry: dict[str, Any], baseline: str) -> str:
    """Four digits; a dash where the ablation costs nothing, or helps, as it may in a model that has learnt nothing: the
    share of that is no measure of anything."""
    value, cost = entry["ce_recovered"][baseline], entry["ablation_cost"][baseline]
    return f"{value:.4f}" if value is not None and cost > 0 else "–"


LEGEND = (
    "FVU: variance unexplained. CE recovered: share of the ablation's cost (in nats) that splicing the reconstruction "
    "in gives back; 1 is perfect. dead: fired on no held-out token; ultra-rare: on less than {ultra:g} of them; dense: "
    "on more than {dense:g}."
)
