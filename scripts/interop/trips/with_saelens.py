"""SAELens: `SAE.load_from_disk`, `save_model`, and its trainer's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sae_lens
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sae_tools.dictionaries.formats.support import Architecture
from trips.peer import Fresh, Peer
from trips.subjects import D_SAE, LAYER, WIDTHS, Bench, K, sites_of

STEPS, BATCH = 60, 512
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Standard", {"l1_coefficient": 1.0}),
    "topk": ("TopK", {"k": K}),
    "jumprelu": ("JumpReLU", {"l0_coefficient": 1.0, "jumprelu_init_threshold": 0.1}),
    "gated": ("Gated", {"l1_coefficient": 1.0}),
    "batchtopk": ("BatchTopK", {"k": K}),
    "matryoshka": ("MatryoshkaBatchTopK", {"k": K, "matryoshka_widths": WIDTHS}),
}
TRANSCODERS = {
    Architecture("relu", True): "Transcoder",
    Architecture("relu", True, True): "SkipTranscoder",
    Architecture("jumprelu", True): "JumpReLUTranscoder",
    Architecture("jumprelu", True, True): "JumpReLUSkipTranscoder",
}
HOOK = f"blocks.{LAYER}.hook_mlp_out"


def load(path: Path) -> Peer:
    return peer(sae_lens.SAE.load_from_disk(path))


def peer(sae: Any) -> Peer:
    norms = sae.W_dec.detach().norm(dim=-1)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # it decodes with rows of norm 1 then
        norms = torch.ones_like(norms)
    return Peer(type(sae).__name__, sae.encode, sae.forward, norms, sae.save_model)


def fresh(bench: Bench, folder: Path) -> Iterator[Fresh]:
    for kind in TRAINED:
        yield from trained(kind, bench.trained_on("mlp_out"), folder / kind)
    for architecture, name in TRANSCODERS.items():
        reads, writes = sites_of(architecture, "saelens")
        x, y = bench.trained_on(reads), bench.trained_on(writes)
        saved = fitted(architecture, name, x, y, folder / name)
        yield Fresh(architecture, "save_model (no trainer)", folder / name, saved, reads, {})


def trained(kind: str, x: Tensor, folder: Path) -> Iterator[Fresh]:
    """As `SAETrainer.fit` goes about it: inputs scaled by an estimate, steps, the scale folded into the weights, a
    checkpoint. One more checkpoint is of before the folding, as those in the midst of a run are; the inference copy
    is what all three are compared with."""
    name, own = TRAINED[kind]
    torch.manual_seed(0)
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=x.shape[1], d_sae=D_SAE, normalize_activations="expected_average_only_in", **own
    )
    config.metadata.hook_name = HOOK
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    cfg = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=3e-3,
        lr_end=3e-3,
        n_batches_for_norm_estimate=4,
    )
    batches = _batches(x)
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=batches)
    trainer.activation_scaler.estimate_scaling_factor(
        d_in=x.shape[1], data_provider=batches, n_batches_for_norm_estimate=4
    )
    for _ in range(STEPS):
        trainer.maybe_reset_sparsity()
        trainer.step(next(batches))
        trainer.n_training_steps += 1
    trainer.save_checkpoint("midway", folder)
    assert trainer.activation_scaler.scaling_factor is not None
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()
    trainer.save_checkpoint("final", folder)
    sae.save_inference_model(folder / "inference")
    inference = load(folder / "inference")
    names = {"midway": "checkpoint, inputs scaled", "final": "final checkpoint", "inference": "inference model"}
    for part, words in names.items():
        yield Fresh(Architecture(kind), words, folder / part, inference, "mlp_out", {"hook_name": HOOK})


def fitted(architecture: Architecture, name: str, x: Tensor, y: Tensor, folder: Path) -> Peer:
    """SAELens only runs transcoders, and trains none: its class, fitted by plain Adam steps on its own forward."""
    torch.manual_seed(0)
    sae = getattr(sae_lens, name)(
        getattr(sae_lens, f"{name}Config")(d_in=x.shape[1], d_out=y.shape[1], d_sae=D_SAE, apply_b_dec_to_input=False)
    )
    if architecture.kind == "jumprelu":  # without a gradient in its forward
        with torch.no_grad():
            sae.threshold.copy_(0.2 * torch.rand(D_SAE))
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
    for _, rows in zip(range(STEPS), _batches(torch.cat([x, y], 1)), strict=False):
        a, b = rows[:, : x.shape[1]], rows[:, x.shape[1] :]
        optimiser.zero_grad()
        (sae(a) - b).pow(2).sum(-1).mean().backward()
        optimiser.step()
    sae.save_model(folder)
    return peer(sae.eval())


def _batches(x: Tensor) -> Iterator[Tensor]:
    """Random rows, copied, without end."""
    g = torch.Generator().manual_seed(0)
    while True:
        yield x[torch.randint(len(x), (BATCH,), generator=g)]
