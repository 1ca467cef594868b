"""An evaluation as tables on the terminal, and what its figures mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.table import Table

from sae_tools.analysis.splicing import BASELINES
from sae_tools.analysis.table import ce_recovered

PER_TABLE = 3
"""Dictionaries side by side, so that 80 columns suffice."""

DEFINITIONS = {
    "tokens": "Held-out tokens that are rows (by default all but the first of a context and special ones); everything "
    "is measured at these unless it says otherwise. `predictions`: those of them that have a next token.",
    "l0": "Features > 0 per token, mean.",
    "alive": "Features > 0 on at least one of the tokens; `dead`: on none, so that their density is below 3 / tokens "
    "(95 %); `ultra_rare`: alive, on less than {ultra:g} of the tokens; `dense`: on more than {dense:g}.",
    "fvu": "Σ‖x - x̂‖² / Σ‖x - mean‖², all tokens at once, in each space that the reconstruction maps forward to.",
    "ev_centred": "1 - fvu: the explained variance to use (SAELens's since 6.45.1).",
    "ev_legacy": "1 - mean over tokens of ‖x - x̂‖² / ‖x - mean of the batch‖²: what SAELens reported before 6.45.1. "
    "Depends on the batch and on the few tokens near its mean.",
    "ev_constant_bias_blind": "1 - Σ Var(x - x̂) / Σ Var(x): dictionary_learning's. An error that is the same at every "
    "token does not count.",
    "mse": "‖x - x̂‖² summed over dimensions, mean over tokens.",
    "relative_bias": "mean ‖x̂‖² / mean x·x̂ (arXiv 2404.16014, eq. 10); below 1: the reconstruction is too short.",
    "l2_ratio": "mean of ‖x̂‖ / ‖x‖. `cosine`: mean of cos(x, x̂).",
    "ce": "Next-token cross-entropy in nats per prediction: of the model as it is, with the reconstruction spliced in, "
    "and with the site's output replaced by 0 (`zero`), by its `mean` over rows, or by what it is at another random "
    "token of the batch (`resample`). Edits are made at rows and predictions counted at rows.",
    "ablation_cost": "ce of the ablation - ce of the model, nats: what there is to recover.",
    "ce_recovered": "(ablated - reconstruction) / (ablated - original). Zero ablation also takes away a constant that "
    "the model relies on, so read `mean` first.",
    "kl": "KL(original ‖ spliced), nats per prediction. `kl_recovered`: 1 - kl / kl of the ablation.",
    "with_bos": "Over all tokens, BOS and special ones too. `edited_X_counted_Y`: the edit is made at X and the "
    "predictions made at Y count, where `all` is every token. `not_rows`: at the tokens that are no rows alone.",
    "positions": "By position in the context; edits at rows, predictions at rows, FVU against the bin's own mean.",
    "controls": "identity: gives back what it reads, recovers exactly 1. silent: outputs nothing, is exactly zero "
    "ablation. shuffled_weights: this dictionary on the model with every weight matrix's entries in a random order.",
    "probing": "Logistic regression on the k features with the largest standardised difference of means, chosen and "
    "fitted on some documents, judged on others. `coordinates`: on the k best of the site's own; `random`: on k random "
    "features; `dense`: on all coordinates of the site. Balanced accuracy and AUC are 0.5 by chance.",
}

Entry = dict[str, Any]
Show = Callable[[Entry], str]


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def evaluation_tables(found: dict[str, Any]) -> Iterator[Table]:
    """What `evaluate_dictionaries` returned, those dictionaries side by side that share a corpus."""
    for index, corpus in enumerate(found["corpora"]):
        mine = {name: entry for name, entry in found["dictionaries"].items() if entry["corpus"] == index}
        for start in range(0, len(mine), PER_TABLE):
            part = dict(list(mine.items())[start : start + PER_TABLE])
            yield from tables_of(part, corpus)


def tables_of(part: dict[str, Entry], corpus: dict[str, Any]) -> Iterator[Table]:
    held = "held-out " if corpus["held_out"] else ""
    title = f"On {corpus['tokens']:,} {held}tokens of {corpus['documents']:,} documents"
    yield table(title, part, fidelity_rows(part))
    yield position_table(part)
    entries = list(part.values())
    if all("controls" in entry for entry in entries):
        tokens = entries[0]["controls"]["identity"]["tokens"]
        yield table(f"Controls, on {tokens:,} of these tokens", part, control_rows())
    if all("probing" in entry and entry["probing"]["tasks"] for entry in entries):
        about = entries[0]["probing"]
        documents, tokens = about["documents"], about["tokens"]
        yield table(
            f"Probes for {len(about['tasks'])} labels of {about['labels']}: fitted on {documents['train']:,} documents "
            f"({tokens['train']:,} tokens), AUC on {documents['test']:,} others ({tokens['test']:,}), mean over labels",
            part,
            probe_rows(about),
        )


def table(title: str, part: dict[str, Entry], rows: Iterator[tuple[str, Show]]) -> Table:
    out = Table(title=title, title_justify="left")
    out.add_column("", no_wrap=True)
    for name in part:
        out.add_column(name, justify="right", overflow="fold")
    for label, show in rows:
        out.add_row(label, *(show(entry) for entry in part.values()))
    return out


def fidelity_rows(part: dict[str, Entry]) -> Iterator[tuple[str, Show]]:
    def at(*keys: str, digits: int = 4) -> Show:
        def show(entry: Entry) -> str:
            value: Any = entry
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            return number(value, digits)

        return show

    yield "features", at("d_sae", digits=0)
    yield "L0", at("l0", digits=1)
    for space in dict.fromkeys(space for entry in part.values() for space in entry["fvu"]):
        yield f"FVU in {space}", at("fvu", space)
    site = "reconstruction", "site"
    yield "ev_centred at the site", at(*site, "ev_centred")
    yield "ev_legacy", at(*site, "ev_legacy")
    yield "ev_constant_bias_blind", at(*site, "ev_constant_bias_blind")
    yield "mse", at(*site, "mse")
    yield "relative bias", at(*site, "relative_bias")
    yield "l2 ratio", at(*site, "l2_ratio")
    yield "cosine", at(*site, "cosine")
    for key in ("alive", "dead", "ultra_rare", "dense"):
        yield key.replace("_", "-"), at(key, digits=0)
    yield "dead: density below", lambda entry: f"{entry['dead_density_bound']:.1e}"
    yield "predictions", at("predictions", digits=0)
    yield "CE, original", at("ce", "original")
    yield "CE, reconstruction", at("ce", "reconstruction")
    for name in BASELINES:
        yield f"{name} ablation costs (nats)", at("ablation_cost", name)
    for name in BASELINES:
        yield f"CE recovered, {name}", lambda entry, name=name: ce_recovered(entry, name)
    yield "KL of the splice (nats)", at("kl")
    for name in BASELINES:
        yield f"KL recovered, {name}", at("kl_recovered", name)
    everything = "with_bos", "edited_all_counted_all"
    yield "with BOS: CE recovered, mean", lambda entry: ce_recovered(entry[everything[0]][everything[1]], "mean")
    yield "with BOS: KL", at(*everything, "kl")
    yield "with BOS: ev_centred", at("with_bos", "reconstruction", "ev_centred")


def position_table(part: dict[str, Entry]) -> Table:
    out = Table(title="Splice costs (nats of CE), by position in the context", title_justify="left")
    for label in ("position", "tokens", "CE"):
        out.add_column(label, justify="right")
    for name in part:
        out.add_column(name, justify="right", overflow="fold")
    for bins in zip(*(entry["positions"] for entry in part.values()), strict=True):
        first, stop = bins[0]["first"], bins[0]["stop"]
        place = str(first) if stop == first + 1 else f"{first}–{stop - 1}"
        costs = [None if one["ce_original"] is None else one["ce_reconstruction"] - one["ce_original"] for one in bins]
        out.add_row(place, f"{bins[0]['predictions']:,}", number(bins[0]["ce_original"]), *map(number, costs))
    return out


def control_rows() -> Iterator[tuple[str, Show]]:
    def shuffled(*keys: str) -> Show:
        def show(entry: Entry) -> str:
            value: Any = entry["controls"]["shuffled_weights"]
            for key in keys:
                value = value[key]
            return number(value)

        return show

    def splice_cost(entry: Entry) -> str:
        ce = entry["controls"]["shuffled_weights"]["ce"]
        return number(ce["reconstruction"] - ce["original"])

    def known(control: str, figure: Show) -> Show:
        def show(entry: Entry) -> str:
            return figure(entry) if entry["controls"][control]["as_known"] else f"{figure(entry)} (!)"

        return show

    yield (
        "identity: CE recovered",
        known("identity", lambda e: number(e["controls"]["identity"]["ce_recovered"]["mean"])),
    )
    yield (
        "silent: CE - zero-ablated CE",
        known("silent", lambda e: number(e["controls"]["silent"]["ce"] - e["controls"]["silent"]["ce_zero"])),
    )
    yield "shuffled: L0", lambda e: number(e["controls"]["shuffled_weights"]["l0"], 1)
    yield "shuffled: ev_centred", shuffled("reconstruction", "site", "ev_centred")
    yield "shuffled: CE, original", shuffled("ce", "original")
    yield "shuffled: mean ablation costs", shuffled("ablation_cost", "mean")
    yield "shuffled: splice costs (nats)", splice_cost


def probe_rows(about: Entry) -> Iterator[tuple[str, Show]]:
    def auc(*keys: str) -> Show:
        def show(entry: Entry) -> str:
            value: Any = entry["probing"]["mean"]
            for key in (*keys, "auc"):
                value = value.get(key) if isinstance(value, dict) else None
            return number(value, 3)

        return show

    ks = [key for key in about["mean"] if key != "dense"]
    for key in ks:
        yield key, auc(key)
    for kind in ("coordinates", "random"):
        for key in ks:
            yield f"{key}, {kind}", auc(key, kind)
    yield "dense", auc("dense")


def legend(found: dict[str, Any]) -> str:
    """What the tables' words mean."""
    shown = (
        "ev_centred", "ev_legacy", "ev_constant_bias_blind", "relative_bias", "alive", "ce", "ce_recovered", "kl",
        "with_bos", "controls", "probing",
    )  # fmt: skip
    return "\n".join(f"{key}: {found['definitions'][key]}" for key in shown)
