"""One run of a side: the same rows in the same order, its own loop, and what its inference makes of held-out rows.

Ours and SAELens warm the learning rate up over 100 steps and let it fall to 0 over the last 400; penalties reach their
strength after 500 steps. Everything else is each library's default. sparsify has schedules of its own.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from rows import INPUT, UPDATE, Data, fvu
from tasks import TWO_SITES, Task
from torch import Tensor

WARM_UP, DECAY, PENALTY_WARM_UP = 100, 400, 500


def batches(data: Data, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) of each row once, in an order given by the seed."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    for part in order.split(batch):
        x = data.train[part]
        yield x, x if data.target is data.train else data.target[part]


def widths(d_sae: int) -> list[int]:
    return [d_sae // 16, d_sae // 8, d_sae // 4, d_sae // 2, d_sae]


@torch.no_grad()
def measured(active: Tensor, reconstruction: Tensor, data: Data) -> dict[str, float]:
    """L0, FVU and the share of features that fire on no held-out row.

    active: bool [rows, d_sae], reconstruction: [rows, d_out], both of the held-out rows.
    """
    return {
        "l0": active.sum(-1).double().mean().item(),
        "fvu": fvu(data.heldout_target, reconstruction),
        "silent": 1 - active.any(0).double().mean().item(),
    }


def ours(task: Task, data: Data, d_sae: int, batch: int) -> dict[str, float]:
    from sae_tools import config
    from sae_tools.dictionaries import build_dictionary
    from sae_tools.dictionaries.initial import Target
    from sae_tools.seeds import generator
    from sae_tools.training.trainee import Trainee

    k, strength = int(task.setting), task.setting
    two_sites = task.architecture in TWO_SITES
    architecture: Any = {
        "topk": lambda: config.TopKConfig(k=k),
        "transcoder": lambda: config.TopKConfig(k=k),
        "skip-transcoder": lambda: config.TopKConfig(k=k),
        "batchtopk": lambda: config.BatchTopKConfig(k=k),
        "matryoshka": lambda: config.MatryoshkaConfig(k=k, widths=widths(d_sae)),
        "relu": lambda: config.ReLUConfig(l1=strength, l1_warmup_steps=PENALTY_WARM_UP),
        "gated": lambda: config.GatedConfig(l1=strength, l1_warmup_steps=PENALTY_WARM_UP),
        "jumprelu": lambda: config.JumpReLUConfig(l0_coefficient=strength, l0_warmup_steps=PENALTY_WARM_UP),
    }[task.architecture]()
    steps = len(data.train) // batch
    cfg = config.DictionaryConfig(
        site=INPUT if two_sites else UPDATE,
        writes=config.WritesConfig(site=UPDATE) if two_sites else None,
        skip=task.architecture == "skip-transcoder",
        d_sae=d_sae,
        architecture=architecture,
        lr=task.lr,
    )
    training = config.TrainingConfig(
        batch_size=batch,
        tokens=len(data.train),
        warmup_steps=WARM_UP,
        decay_fraction=DECAY / steps,
        selection="float32",
    )
    sample, sample_target = data.train[:32_768], data.target[:32_768]
    target = Target(data.target.shape[1], sample_target) if two_sites else None
    random = generator(task.seed, "architectures")
    dictionary = build_dictionary(cfg, data.train.shape[1], random, sample, target=target)
    nothing = cast(Any, None)  # neither site nor space: the rows are in the space already
    trainee = Trainee("it", nothing, cfg, training, nothing, dictionary, sample_target.var(0).sum())
    go = torch.zeros(())
    for step, (x, y) in enumerate(batches(data, batch, task.seed)):
        trainee.apply(trainee.propose(x, step, target=y if two_sites else None), step, steps, len(x), go)
    with torch.no_grad():
        f = dictionary.encode(data.heldout)
        return measured(f > 0, dictionary.decode(f, data.heldout), data)


def saelens(task: Task, data: Data, d_sae: int, batch: int) -> dict[str, float]:
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
        getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=data.train.shape[1], d_sae=d_sae, **own)
    )
    cfg = SAETrainerConfig(
        total_training_samples=len(data.train),
        train_batch_size_samples=batch,
        lr=task.lr,
        lr_end=task.lr,
        lr_warm_up_steps=WARM_UP,
        lr_decay_steps=DECAY,
    )
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=iter([]))
    for x, _ in batches(data, batch, task.seed):
        trainer.maybe_reset_sparsity()
        trainer.step(x)
        trainer.n_training_steps += 1
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        inference = sae_lens.SAE.load_from_disk(folder)
    with torch.no_grad():
        f = inference.encode(data.heldout)
        return measured(f > 0, inference.decode(f), data)


def sparsify(task: Task, data: Data, d_sae: int, batch: int) -> dict[str, float]:
    """sparsify 1.3: what its Trainer does around SparseCoder, with Adam and its linear schedule; read back from disk.

    Its trainer sets the biases so that the first batch's pre-activations and outputs are centred, starts a
    transcoder's decoder at zero and leaves the norms of its rows free, does not clip, and has AuxK off.
    """
    from sparsify import SparseCoder, SparseCoderConfig
    from transformers import get_linear_schedule_with_warmup

    skip = task.architecture == "skip-transcoder"
    torch.manual_seed(task.seed)
    cfg = SparseCoderConfig(num_latents=d_sae, k=int(task.setting), transcode=True, skip_connection=skip)
    sae = SparseCoder(data.train.shape[1], cfg)
    optimiser = torch.optim.Adam(sae.parameters(), lr=task.lr)
    schedule = get_linear_schedule_with_warmup(optimiser, WARM_UP, len(data.train) // batch)
    for step, (x, y) in enumerate(batches(data, batch, task.seed)):
        if step == 0:
            sae.encoder.bias.data = -x.mean(0) @ sae.encoder.weight.data.T
            sae.b_dec.data = y.mean(0)
        sae(x=x, y=y).fvu.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sae.save_to_disk(folder)
        inference = SparseCoder.load_from_disk(folder)
        out = inference(x=data.heldout, y=data.heldout_target)
    active = torch.zeros(len(data.heldout), d_sae, dtype=torch.bool)
    active.scatter_(1, out.latent_indices, out.latent_acts > 0)
    return measured(active, out.sae_out, data)


SIDES = {"sae_tools": ours, "saelens": saelens, "sparsify": sparsify}
