"""The rows that both sides train on and are measured on: the bundled model's, in the space of an MLP's update."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_tools.activations.harvest import Harvester, collect_rows
from sae_tools.analysis.corpus import open_heldout
from sae_tools.config import DictionaryConfig, JobConfig, SpaceConfig, TrainingConfig
from sae_tools.models.sites import resolve_site
from sae_tools.runs.atomic import replacing
from sae_tools.seeds import generator
from sae_tools.spaces import build_space
from sae_tools.training.job import open_model, open_stream

SITE = "mlp_out@2"
HELDOUT_ROWS = 16_384
SPARE = 131_072
"""Rows read beyond those needed, so that what is trained on is a random part of a longer text."""


def prepare(path: Path, rows: int) -> None:
    """Write `train` [rows, 256] and `heldout` [16384, 256], float32, once; rows are in random order.

    The space is `resid_update` as a job would make it: not centred, mean squared norm equal to the width.
    """
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if file.get_slice("train").get_shape()[0] == rows:
                return
    dictionary = DictionaryConfig(site=SITE, space=SpaceConfig(kind="resid_update"))
    cfg = JobConfig(dictionaries={"it": dictionary}, training=TrainingConfig(estimate_rows=32_768))
    _, model, _ = open_model(cfg)
    site = resolve_site(model, SITE)
    harvester = Harvester(model, [site], cfg.rows)
    found = collect_rows(open_stream(cfg, model), harvester, rows + SPARE)
    space = build_space(dictionary.space, site, model, found[:32_768])
    order = torch.randperm(len(found), generator=generator(0, "architectures"))[:rows]
    heldout = collect_rows(open_heldout(model, cfg.data), harvester, HELDOUT_ROWS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file({"train": space.read(found)[order].contiguous(), "heldout": space.read(heldout)}, temporary)


def load(path: Path) -> tuple[Tensor, Tensor]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("train"), file.get_tensor("heldout")


def fvu(x: Tensor, reconstruction: Tensor) -> float:
    """Σ‖x - x̂‖² / Σ‖x - mean(x)‖², all rows at once, in float64; the same function for both sides."""
    x, reconstruction = x.double(), reconstruction.double()
    return ((x - reconstruction).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
