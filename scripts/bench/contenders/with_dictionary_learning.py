"""dictionary_learning: trainer.update, as its `trainSAE` calls it.

ReLU is its April-2024 trainer, whose loss (free decoder, L1 weighted by its norms) and clipping are SAELens's.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer

from contenders.start import BANDWIDTH, LEARNING_RATE, Contender, Start, mean_active


def build(bench: str, start: Start) -> Contender:
    setting = start.setting
    common: dict[str, Any] = {
        "steps": 10**9,
        "activation_dim": setting.d_in,
        "dict_size": setting.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": LEARNING_RATE,
        "warmup_steps": 0,
        "device": setting.device,
    }
    topk = {"k": setting.k, "threshold_start_step": 0}  # as after their first 1,000 steps
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "topk": (TopKTrainer, topk),
        "relu": (StandardTrainerAprilUpdate, {"sparsity_warmup_steps": None, "l1_penalty": 1.0}),
        "batchtopk": (BatchTopKTrainer, topk),
        "jumprelu": (
            JumpReluTrainer,
            {"sparsity_warmup_steps": None, "bandwidth": BANDWIDTH, "target_l0": float(setting.l0)},
        ),
    }
    kind, own = kinds[bench]
    trainer = kind(**common, **own)
    ae = trainer.ae
    with torch.no_grad():
        if bench == "jumprelu":
            ae.W_enc.copy_(start.encoder.T)
            ae.W_dec.copy_(start.W_dec)
            ae.threshold.fill_(start.threshold)
        else:
            ae.encoder.weight.copy_(start.encoder)
            ae.decoder.weight.copy_(start.W_dec.T)
        if bench == "relu":
            ae.encoder.bias.fill_(-start.threshold)
    if start.dead is not None and bench in ("topk", "batchtopk"):
        trainer.num_tokens_since_fired[start.dead] = 10**12
    steps = itertools.count(1)  # step 0 also estimates the bias
    device = torch.device(setting.device).type

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=setting.autocast):
            trainer.update(step=next(steps), **{"activations" if bench == "relu" else "x": start.x})

    @torch.no_grad()
    def l0() -> float:
        training = {"use_threshold": False} if bench in ("topk", "batchtopk") else {}
        return mean_active(ae.encode(start.x, **training))

    return Contender(step, l0)
