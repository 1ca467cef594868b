"""One run of either side: the same rows in the same order, its own loop, and what its inference makes of held-out rows.

Both warm the learning rate up over 100 steps and let it fall to 0 over the last 400; penalties reach their strength
after 500 steps. Everything else is each library's default.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from rows import fvu
from tasks import Task
from torch import Tensor

WARM_UP, DECAY, PENALTY_WARM_UP = 100, 400, 500


def batches(train: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Each row once, in an order given by the seed."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    for part in order.split(batch):
        yield train[part]


def widths(d_sae: int) -> list[int]:
    return [d_sae // 16, d_sae // 8, d_sae // 4, d_sae // 2, d_sae]


@torch.no_grad()
def measured(encode: Any, decode: Any, heldout: Tensor) -> dict[str, float]:
    """L0, FVU and the share of features that fire on no held-out row."""
    f = encode(heldout)
    active = f > 0
    return {
        "l0": active.sum(-1).double().mean().item(),
        "fvu": fvu(heldout, decode(f)),
        "silent": 1 - active.any(0).double().mean().item(),
    }


def ours(task: Task, train: Tensor, heldout: Tensor, d_sae: int, batch: int) -> dict[str, float]:
    from sae_tools import config
    from sae_tools.dictionaries import build_dictionary
    from sae_tools.seeds import generator
    from sae_tools.training.trainee import Trainee

    k, strength = int(task.setting), task.setting
    architecture: Any = {
        "topk": lambda: config.TopKConfig(k=k),
        "batchtopk": lambda: config.BatchTopKConfig(k=k),
        "matryoshka": lambda: config.MatryoshkaConfig(k=k, widths=widths(d_sae)),
        "relu": lambda: config.ReLUConfig(l1=strength, l1_warmup_steps=PENALTY_WARM_UP),
        "gated": lambda: config.GatedConfig(l1=strength, l1_warmup_steps=PENALTY_WARM_UP),
        "jumprelu": lambda: config.JumpReLUConfig(l0_coefficient=strength, l0_warmup_steps=PENALTY_WARM_UP),
    }[task.architecture]()
    steps = len(train) // batch
    cfg = config.DictionaryConfig(site="mlp_out@2", d_sae=d_sae, architecture=architecture, lr=task.lr)
    training = config.TrainingConfig(
        batch_size=batch,
        tokens=len(train),
        warmup_steps=WARM_UP,
        decay_fraction=DECAY / steps,
        selection="float32",
    )
    dictionary = build_dictionary(cfg, train.shape[1], generator(task.seed, "architectures"), train[:32_768])
    nothing = cast(Any, None)  # neither site nor space: the rows are in the space already
    trainee = Trainee("it", nothing, cfg, training, nothing, dictionary, train[:32_768].var(0).sum())
    go = torch.zeros(())
    for step, x in enumerate(batches(train, batch, task.seed)):
        trainee.apply(trainee.propose(x, step), step, steps, len(x), go)
    return measured(dictionary.encode, dictionary.decode, heldout)


def theirs(task: Task, train: Tensor, heldout: Tensor, d_sae: int, batch: int) -> dict[str, float]:
    """SAELens 6: its trainer's own step; measured as its own inference copy, read back from disk."""
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    k, strength = int(task.setting), task.setting
    name, own = {
        "topk": ("TopK", {"k": k}),
        "batchtopk": ("BatchTopK", {"k": k}),
        "matryoshka": ("MatryoshkaBatchTopK", {"k": k, "matryoshka_widths": widths(d_sae)}),
        "relu": ("Standard", {"l1_coefficient": strength, "l1_warm_up_steps": PENALTY_WARM_UP}),
        "gated": ("Gated", {"l1_coefficient": strength, "l1_warm_up_steps": PENALTY_WARM_UP}),
        "jumprelu": ("JumpReLU", {"l0_coefficient": strength, "l0_warm_up_steps": PENALTY_WARM_UP}),
    }[task.architecture]
    torch.manual_seed(task.seed)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(
        getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=train.shape[1], d_sae=d_sae, **own)
    )
    cfg = SAETrainerConfig(
        total_training_samples=len(train),
        train_batch_size_samples=batch,
        lr=task.lr,
        lr_end=task.lr,
        lr_warm_up_steps=WARM_UP,
        lr_decay_steps=DECAY,
    )
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([]))
    for x in batches(train, batch, task.seed):
        trainer.maybe_reset_sparsity()
        trainer.step(x)
        trainer.n_training_steps += 1
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        inference = sae_lens.SAE.load_from_disk(folder)
    return measured(inference.encode, inference.decode, heldout)
