"""sparsify: `SparseCoder.load_from_disk`, `save_to_disk`, and what its trainer writes after training on the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_tools.dictionaries.formats.support import Architecture
from sae_tools.training.job import open_stream
from trips.peer import Fresh, Peer
from trips.subjects import D_SAE, LAYER, Bench, K, job, sites_of

STEPS, CONTEXTS = 30, 4
HOOK = f"h.{LAYER}.mlp"
TRAINED: list[tuple[Architecture, dict[str, bool]]] = [
    (Architecture("topk"), {}),
    (Architecture("topk"), {"multi_topk": True, "normalize_decoder": False}),
    (Architecture("topk", True), {"transcode": True}),
    (Architecture("topk", True, True), {"transcode": True, "skip_connection": True}),
]
SAYS = f"blocks.{LAYER}.hook_mlp_out"


def load(path: Path) -> Peer:
    coder = SparseCoder.load_from_disk(path)
    assert coder.W_dec is not None

    def encode(x: Tensor) -> Tensor:
        found = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter_(1, found.top_indices, found.top_acts)

    def forward(x: Tensor) -> Tensor:
        if not coder.cfg.multi_topk:
            return coder(x).sae_out
        found = coder.encode(x)  # its forward is for that loss: with it, the reconstruction of 4 k features
        return coder.decode(found.top_acts, found.top_indices)

    norms = coder.W_dec.detach().norm(dim=-1)
    return Peer("SparseCoder", encode, forward, norms, coder.save_to_disk)


def fresh(bench: Bench, folder: Path) -> Iterator[Fresh]:
    """Its own trainer, on the same model as a Hugging Face one: at the MLP's output, or from its input to there."""
    stream = open_stream(job(), bench.model)
    contexts: list[Tensor] = []
    while sum(map(len, contexts)) < STEPS * CONTEXTS:
        contexts.append(next(stream).tokens)
    tokens = torch.cat(contexts)[: STEPS * CONTEXTS]
    data = Dataset.from_dict({"input_ids": tokens.tolist()}).with_format("torch")
    model = AutoModelForCausalLM.from_pretrained(str(bench.model.folder), dtype=torch.float32).eval()
    for i, (architecture, own) in enumerate(TRAINED):
        coder = SparseCoderConfig(num_latents=D_SAE, k=K, **own)
        settings = TrainConfig(
            coder,
            batch_size=CONTEXTS,
            optimizer="adam",
            lr=3e-3,
            lr_warmup_steps=5,
            hookpoints=[HOOK],
            log_to_wandb=False,
            save_dir=str(folder),
            run_name=f"run{i}",
        )
        Trainer(settings, data, model).fit()
        path = folder / f"run{i}" / HOOK
        name = " ".join(["Trainer", *(key for key, value in own.items() if value)])
        says = {"hook_name_out" if architecture.transcoder else "hook_name": SAYS}
        reads = sites_of(architecture, "sparsify")[0]
        yield Fresh(architecture, name, path, load(path), reads, says)
