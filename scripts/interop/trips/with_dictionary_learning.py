"""dictionary_learning: `load_dictionary`, and the folders that its `trainSAE` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from torch import Tensor

from sae_tools.dictionaries.formats.support import Architecture
from trips.peer import Fresh, Peer
from trips.subjects import D_SAE, LAYER, Bench, K

STEPS, BATCH, HALFWAY = 60, 512, 30
TRAINERS: list[tuple[str, Any, dict[str, Any]]] = [
    ("relu", StandardTrainer, {"l1_penalty": 0.03, "sparsity_warmup_steps": None}),
    ("relu", StandardTrainerAprilUpdate, {"l1_penalty": 0.03, "sparsity_warmup_steps": None}),
    (
        "relu",
        StandardTrainerAprilUpdate,
        {"dict_class": AutoEncoderNew, "l1_penalty": 0.03, "sparsity_warmup_steps": None},
    ),
    ("topk", TopKTrainer, {"k": K, "threshold_start_step": 10}),
    ("batchtopk", BatchTopKTrainer, {"k": K, "threshold_start_step": 10}),
    (
        "matryoshka",
        MatryoshkaBatchTopKTrainer,
        {"k": K, "threshold_start_step": 10, "group_fractions": [0.125, 0.375, 0.5]},
    ),
    ("jumprelu", JumpReluTrainer, {"target_l0": float(K), "sparsity_warmup_steps": None}),
    ("gated", GatedSAETrainer, {"l1_penalty": 0.03, "sparsity_warmup_steps": None}),
]
SAYS = {"hook_name": f"blocks.{LAYER}.hook_mlp_out", "model_name": "bundled"}


def load(path: Path) -> Peer:
    dictionary, config = load_dictionary(str(path), device="cpu")
    return peer(dictionary, config)


def peer(dictionary: Any, config: dict[str, Any]) -> Peer:
    rows = dictionary.W_dec if hasattr(dictionary, "W_dec") else dictionary.decoder.weight.T

    def save(path: Path) -> None:  # the two calls at the end and the beginning of trainSAE, which has no function
        path.mkdir()
        torch.save({k: v.cpu() for k, v in dictionary.state_dict().items()}, path / "ae.pt")
        (path / "config.json").write_text(json.dumps(config, indent=4))

    return Peer(type(dictionary).__name__, dictionary.encode, dictionary, rows.detach().norm(dim=-1), save)


def fresh(bench: Bench, folder: Path) -> Iterator[Fresh]:
    """`trainSAE` with scaled inputs, which it folds into the biases as it saves; its checkpoint halfway too."""
    x = bench.trained_on("mlp_out")
    for number, (kind, trainer, own) in enumerate(TRAINERS):
        into = folder / f"{number}"
        common = {
            "trainer": trainer,
            "activation_dim": x.shape[1],
            "dict_size": D_SAE,
            "layer": LAYER,
            "lm_name": "bundled",
            "submodule_name": f"mlp_out_layer_{LAYER}",
            "steps": STEPS,
            "lr": 3e-3,
            "warmup_steps": 5,
            "seed": 0,
            "device": "cpu",
        }
        trainSAE(
            data=_batches(x),
            trainer_configs=[common | own],
            steps=STEPS,
            save_steps=[HALFWAY],
            save_dir=str(into),
            normalize_activations="dict_class" not in own,  # AutoEncoderNew has no scale_biases
            device="cpu",
        )
        path = into / "trainer_0"
        if "dict_class" in own:  # config.json says AutoEncoder, and load_dictionary fails on it
            config = json.loads((path / "config.json").read_text())
            saved = peer(own["dict_class"].from_pretrained(path / "ae.pt", device="cpu"), config)
            yield Fresh(Architecture(kind), f"{trainer.__name__} of AutoEncoderNew", path, saved, "mlp_out", SAYS)
            continue
        yield Fresh(Architecture(kind), trainer.__name__, path, load(path), "mlp_out", SAYS)
        if trainer in (TopKTrainer, BatchTopKTrainer):
            halfway = path / "checkpoints" / f"ae_{HALFWAY}.pt"
            config = json.loads((path / "config.json").read_text())
            cls: Any = type(load_dictionary(str(path), device="cpu")[0])
            then = peer(cls.from_pretrained(halfway, device="cpu"), config)
            name = f"{trainer.__name__}, checkpoints/{halfway.name}"
            yield Fresh(Architecture(kind), name, halfway, then, "mlp_out", SAYS)


def _batches(x: Tensor) -> Iterator[Tensor]:
    """Random rows, copied (trainSAE divides them in place), without end."""
    g = torch.Generator().manual_seed(0)
    while True:
        yield x[torch.randint(len(x), (BATCH,), generator=g)]
