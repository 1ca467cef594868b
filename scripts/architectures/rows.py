"""The rows that both sides train on and are measured on: the bundled model's, an MLP's updates and its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_tools.activations.harvest import Harvester, collect_rows
from sae_tools.analysis.corpus import open_heldout
from sae_tools.config import DictionaryConfig, JobConfig, SpaceConfig, TrainingConfig
from sae_tools.errors import UserError
from sae_tools.models.sites import resolve_site
from sae_tools.runs.atomic import replacing
from sae_tools.seeds import generator
from sae_tools.spaces import build_space
from sae_tools.training.job import open_model, open_stream

UPDATE, INPUT = "mlp_out@2", "mlp_in@2"
HELDOUT_ROWS = 16_384
SPARE = 131_072
"""Rows read beyond those needed, so that what is trained on is a random part of a longer text."""


class Data(NamedTuple):
    """What is read and what is to be reconstructed, float32 [rows, 256] each; the same tensor but for transcoders."""

    train: Tensor
    target: Tensor
    heldout: Tensor
    heldout_target: Tensor


def prepare(folder: Path, rows: int, inputs: bool) -> None:
    """Write updates.safetensors, and inputs.safetensors if they are wanted: `train` [rows, 256] and `heldout`
    [16384, 256] each, float32, once; the same tokens in the same random order.

    Both are as a job would make them, `resid_update` and `resid`: not centred, mean squared norm equal to the width.
    """
    wanted = {"updates": (UPDATE, "resid_update")} | ({"inputs": (INPUT, "resid")} if inputs else {})
    if all(_has(folder / f"{name}.safetensors", rows) for name in wanted):
        return
    sites = [site for site, _ in wanted.values()]
    cfg = JobConfig(
        dictionaries={
            name: DictionaryConfig(site=site, space=SpaceConfig(kind=kind)) for name, (site, kind) in wanted.items()
        },
        training=TrainingConfig(estimate_rows=32_768),
    )
    _, model, _ = open_model(cfg)
    resolved = [resolve_site(model, site) for site in sites]
    harvester = Harvester(model, resolved, cfg.rows)
    found = collect_rows(open_stream(cfg, model), harvester, rows + SPARE)
    heldout = collect_rows(open_heldout(model, cfg.data), harvester, HELDOUT_ROWS)
    order = torch.randperm(len(found), generator=generator(0, "architectures"))[:rows]
    folder.mkdir(parents=True, exist_ok=True)
    for name, site in zip(wanted, resolved, strict=True):
        space = build_space(cfg.dictionaries[name].space, site, model, found[:32_768])
        tensors = {"train": space.read(found)[order].contiguous(), "heldout": space.read(heldout)}
        path = folder / f"{name}.safetensors"
        if _has(path, rows):  # what runs before this one were trained on must go with what is written now
            if any(not torch.equal(tensor, tensors[key]) for key, tensor in _load(path).items()):
                raise UserError(f"{path} holds other rows than this version would write: remove {folder}.")
            continue
        with replacing(path) as temporary:
            save_file(tensors, temporary)


def load(folder: Path, inputs: bool) -> tuple[Data, Data]:
    """(for dictionaries of one site, for transcoders); the first twice without `inputs`."""
    updates = _load(folder / "updates.safetensors")
    read = _load(folder / "inputs.safetensors") if inputs else updates
    one, two = ((x["train"], updates["train"], x["heldout"], updates["heldout"]) for x in (updates, read))
    return Data(*one), Data(*two)


def _has(path: Path, rows: int) -> bool:
    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return file.get_slice("train").get_shape()[0] == rows


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in ("train", "heldout")}


def fvu(x: Tensor, reconstruction: Tensor) -> float:
    """Σ‖x - x̂‖² / Σ‖x - mean(x)‖², all rows at once, in float64; the same function for both sides."""
    x, reconstruction = x.double(), reconstruction.double()
    return ((x - reconstruction).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
