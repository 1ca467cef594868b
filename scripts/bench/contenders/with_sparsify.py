"""sparsify: SparseCoder in the order in which Trainer.fit calls it, without the language model around it.

Its trainer keeps the decoder at norm 1 and does not clip. Adam, as the others have, in place of its own default.
"""

from __future__ import annotations

import torch
from sparsify import SparseCoder, SparseCoderConfig
from transformers import get_linear_schedule_with_warmup

from contenders.start import LEARNING_RATE, Contender, Start

AUXK_ALPHA = 1 / 32
DEAD_AFTER = 10_000_000


def build(bench: str, start: Start) -> Contender:
    if bench != "topk":
        raise ValueError(f"sparsify has no {bench}")
    setting, x = start.setting, start.x
    sae = SparseCoder(setting.d_in, SparseCoderConfig(num_latents=setting.d_sae, k=setting.k), setting.device)
    assert sae.W_dec is not None
    with torch.no_grad():
        sae.encoder.weight.copy_(start.encoder)
        sae.W_dec.copy_(start.W_dec)
    optimiser = torch.optim.Adam([{"params": sae.parameters(), "lr": LEARNING_RATE}])
    scheduler = get_linear_schedule_with_warmup(optimiser, 0, 10**9)
    since_fired = torch.zeros(setting.d_sae, dtype=torch.long, device=setting.device)
    did_fire = torch.zeros(setting.d_sae, dtype=torch.bool, device=setting.device)
    if start.dead is not None:
        since_fired[start.dead] = 10**12

    def step() -> None:
        sae.set_decoder_norm_to_unit_norm()
        dead = since_fired > DEAD_AFTER if setting.aux else None
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=dead, total_variance=total_variance)
        did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + (AUXK_ALPHA if setting.aux else 0.0) * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        scheduler.step()
        with torch.no_grad():
            since_fired.add_(x.shape[0])
            since_fired[did_fire] = 0
            did_fire.zero_()

    return Contender(step, lambda: float(setting.k))
