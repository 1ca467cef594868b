"""Real rows of the bundled model, and a dictionary of ours of every architecture, trained on them until nothing in it
is trivial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools import load_model, train
from sae_tools.activations.harvest import Harvester, collect_rows
from sae_tools.config import DictionaryConfig, JobConfig, RowsConfig
from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.folding import without_subtraction
from sae_tools.dictionaries.formats.parts import put_together, take_apart
from sae_tools.dictionaries.formats.support import Architecture
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import resolve_site
from sae_tools.training.job import open_stream

ROWS, TRAINED_ON = 1000, 8192
D_SAE, K, WIDTHS = 512, 16, [64, 192, 512]
STEPS, BATCH = 100, 512
LAYER = 2
SITES = ("mlp_in", "mlp_acts", "mlp_out")
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "batchtopk": {"k": K},
    "matryoshka": {"k": K, "widths": WIDTHS},
    "relu": {"form": "decoder-norm", "l1": 1.0, "l1_warmup_steps": 10},
    "gated": {"form": "decoder-norm", "l1": 1.0, "l1_warmup_steps": 10},
    "jumprelu": {"l0_coefficient": 1.0, "l0_warmup_steps": 10},
}


@dataclass(frozen=True)
class Bench:
    """Rows by site, those compared on first, and the model that they come from."""

    activations: dict[str, Float[Tensor, "rows d"]]
    model: LanguageModel

    def compared(self, site: str) -> Float[Tensor, "1000 d"]:
        return self.activations[site][:ROWS]

    def trained_on(self, site: str) -> Float[Tensor, "rows d"]:
        return self.activations[site][ROWS:]


def job() -> JobConfig:
    """Whose text is read."""
    return JobConfig(dictionaries={"any": DictionaryConfig(site=f"mlp_out@{LAYER}")})


def bench() -> Bench:
    """The first rows of the training text; nothing of what is compared is trained on."""
    cfg = job()
    model = load_model(cfg.model.name)
    sites = [resolve_site(model, f"{name}@{LAYER}") for name in SITES]
    rows = collect_rows(open_stream(cfg, model), Harvester(model, sites, RowsConfig()), ROWS + TRAINED_ON)
    return Bench({name: rows.activations[f"{name}@{LAYER}"] for name in SITES}, model)


def sites_of(architecture: Architecture, where: str) -> tuple[str, str]:
    """(what is read, what is reconstructed). sparsify's transcoders are as wide on both sides; and from the MLP's
    activations to its output a skip connection alone would do, since that is linear."""
    if not architecture.transcoder:
        return "mlp_out", "mlp_out"
    if where == "sparsify":
        return "mlp_in", "mlp_out"
    return ("mlp_in", "mlp_acts") if architecture.skip else ("mlp_acts", "mlp_out")


def metadata_of(reads: str, writes: str) -> dict[str, Any]:
    hooks = {"mlp_in": "mlp.hook_in", "mlp_acts": "mlp.hook_post", "mlp_out": "hook_mlp_out"}
    found = {"model_name": "bundled", "hook_name": f"blocks.{LAYER}.{hooks[reads]}", "context_size": 256}
    return {**found, **({"hook_name_out": f"blocks.{LAYER}.{hooks[writes]}"} if reads != writes else {})}


def trained(architecture: Architecture, x: Tensor, y: Tensor | None) -> Dictionary:
    """100 steps, decoder rows then stretched by factors of their own around 1, as any file's may be."""
    found = train(
        architecture.kind,  # pyright: ignore[reportArgumentType]
        x if y is None else (x, y),
        d_sae=D_SAE,
        tokens=STEPS * BATCH,
        batch_size=BATCH,
        lr=3e-3,
        warmup_steps=10,
        skip=architecture.skip,
        **SETTINGS[architecture.kind],
    )
    return stretched(found.dictionary)


@torch.no_grad()
def unsubtracted(dictionary: Dictionary) -> Dictionary:
    """The same function of pre-activations x W_enc + b_enc."""
    return put_together(without_subtraction(take_apart(dictionary)))


@torch.no_grad()
def stretched(dictionary: Dictionary) -> Dictionary:
    """Decoder rows times exp(0.3 z), z standard normal."""
    parts = take_apart(dictionary)
    factors = (0.3 * torch.randn(parts.d_sae, 1, generator=torch.Generator().manual_seed(1))).exp()
    settings = dict(parts.settings)
    if parts.kind in ("relu", "gated"):
        settings["form"] = "decoder-norm"
    elif parts.kind == "jumprelu":
        settings["unit_decoder"] = False
    return put_together(replace(parts, W_dec=parts.W_dec * factors, settings=settings))


def trivial(dictionary: Dictionary) -> list[str]:
    """Tensors and settings that are as they were before training, so that a reader could lose them unseen."""
    parts = take_apart(dictionary)
    found = []
    for name, tensor in parts.tensors().items():  # one threshold for all is what BatchTopK's are elsewhere
        start = 0.0 if name == "threshold" else tensor.flatten()[0]
        found += [name] if int((tensor != start).sum()) < 9 else []
    return found + (["threshold"] if parts.settings.get("threshold", 1.0) <= 0 else [])
