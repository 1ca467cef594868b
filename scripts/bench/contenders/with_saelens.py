"""SAELens: SAETrainer.step, as its `fit` calls it."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from contenders.start import BANDWIDTH, LEARNING_RATE, Contender, Start, mean_active


def build(bench: str, start: Start) -> Contender:
    setting = start.setting
    sizes: dict[str, Any] = {"d_in": setting.d_in, "d_sae": setting.d_sae, "device": setting.device}
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": setting.k}),
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": 1.0}),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": setting.k}),
        "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {"jumprelu_bandwidth": BANDWIDTH}),
    }
    kind, config, own = kinds[bench]
    sae = kind(config(**sizes, **own))
    with torch.no_grad():
        sae.W_enc.copy_(start.encoder.T)
        sae.W_dec.copy_(start.W_dec)
        if bench == "relu":
            sae.b_enc.fill_(-start.threshold)
        if bench == "jumprelu":
            sae.threshold.fill_(start.threshold)
    cfg = SAETrainerConfig(
        total_training_samples=10**12,
        train_batch_size_samples=setting.batch,
        device=setting.device,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
        autocast=setting.autocast,
    )
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([]))
    if start.dead is not None:
        trainer.n_forward_passes_since_fired[start.dead] = 1e6

    def step() -> Any:
        trainer.maybe_reset_sparsity()
        output = trainer.step(start.x)
        trainer.n_training_steps += 1
        return output

    return Contender(step, lambda: mean_active(step().feature_acts))
