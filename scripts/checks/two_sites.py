"""Transcoders of the bundled model's last MLP after a short run: centre of what is read, start of the encoder, learning
rate, skip connection.

    python scripts/checks/two_sites.py [--tokens 150000]

Every dictionary sees the same rows in the same order; the FVU of the update and dead features are taken on rows that
none has seen. Where the README's figures come from.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from sae_tools.activations.harvest import collect_rows
from sae_tools.analysis.reconstruction import VarianceUnexplained
from sae_tools.analysis.subject import encode_and_decode
from sae_tools.config import JobConfig
from sae_tools.models.load import LanguageModel
from sae_tools.rows import Rows
from sae_tools.seeds import generator
from sae_tools.training.job import build_trainee, open_harvester, open_model, open_stream
from sae_tools.training.sites import all_sites
from sae_tools.training.trainee import Trainee

BATCH, HELD_OUT = 1024, 20_480
READS = {"mlp_in@3": "resid", "mlp_acts@3": "mlp_acts"}
WRITES = {"site": "mlp_out@3", "space": {"kind": "resid_update"}}


def job(tokens: int, lr: float = 1e-3, **changes: Any) -> JobConfig:
    """One dictionary; changes: `site`, `centre`, and settings of the dictionary."""
    site, centre = changes.pop("site", "mlp_in@3"), changes.pop("centre", "none")
    space = {"kind": READS[site], "centre": centre}
    it = {"site": site, "space": space, "writes": WRITES, "d_sae": 2048, **changes}
    training = {"tokens": tokens, "batch_size": BATCH, "lr": lr, "warmup_steps": 50, "estimate_rows": 16_384}
    return JobConfig.model_validate({"dictionaries": {"it": it}, "training": training})


def fitted(cfg: JobConfig, model: LanguageModel, rows: Rows, sample: Rows) -> Trainee:
    device, model, sites = open_model(cfg, model)
    trainee = build_trainee("it", cfg, model, sites["it"], sample, None, device)
    steps, frozen = len(rows) // BATCH, torch.zeros(())
    for step in range(steps):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        proposal = trainee.propose(trainee.rows_in_space(batch), step, target=trainee.targets(batch))
        trainee.apply(proposal, step, steps, BATCH, frozen)
    return trainee


@torch.no_grad()
def judged(trainee: Trainee, rows: Rows) -> tuple[float, int]:
    """(FVU of what is written, features that fired on none of the rows)."""
    target = trainee.targets(rows)
    assert target is not None
    predicted, fired, *_ = encode_and_decode(trainee.dictionary, trainee.rows_in_space(rows))
    fvu = VarianceUnexplained()
    fvu.update(target, predicted)
    return fvu.finish(), int((fired == 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=150_000)
    args = parser.parse_args()
    both = JobConfig.model_validate(
        {"dictionaries": {kind: job(1, site=site).dictionaries["it"] for site, kind in READS.items()}}
    )
    _, model, sites = open_model(both)
    rows = collect_rows(
        open_stream(both, model), open_harvester(both, model, all_sites(sites.values())), args.tokens + HELD_OUT
    )
    rows = rows[torch.randperm(len(rows), generator=generator(0, "two sites"))]
    kept, unseen = rows[:-HELD_OUT], rows[-HELD_OUT:]
    cases: list[dict[str, Any]] = [
        {"centre": centre, "lr": lr} for centre, lr in itertools.product(("none", "mean"), (1e-3, 2e-3, 4e-3))
    ]
    cases += [{"encoder_init": "kaiming"}, {"encoder_init": "kaiming", "centre": "mean"}, {"skip": True}]
    cases += [{"site": "mlp_acts@3", "centre": centre} for centre in ("none", "mean")]
    cases += [{"site": "mlp_acts@3", "encoder_init": "kaiming"}]
    for case in cases:
        fvu, dead = judged(fitted(job(args.tokens, **case), model, kept, kept[:16_384]), unseen)
        said = ", ".join(f"{key} {value}" for key, value in {"site": "mlp_in@3", **case}.items())
        print(f"FVU {fvu:.4f}  dead {dead:4d}  {said}", flush=True)


if __name__ == "__main__":
    main()
