"""sae_tools, by the functions that training/loop.py calls."""

from __future__ import annotations

from typing import Literal, cast

import torch

from contenders.start import BANDWIDTH, LEARNING_RATE, Contender, Start
from sae_tools.config import BatchTopKConfig, DictionaryConfig, JumpReLUConfig, ReLUConfig, TopKConfig, TrainingConfig
from sae_tools.dictionaries import build_dictionary
from sae_tools.models.sites import Site
from sae_tools.seeds import generator
from sae_tools.spaces import Space
from sae_tools.training.guard import Guard
from sae_tools.training.trainee import Trainee

Selection = Literal["float32", "bfloat16"]
LOG_EVERY = 50
STEPS = 10**9
"""Of the run that is timed: too many for the learning rate's decay to begin."""


def architecture(bench: str, start: Start) -> TopKConfig | ReLUConfig | BatchTopKConfig | JumpReLUConfig:
    """The bench's configuration; penalties are as SAELens defines them (the L1 weighted by the decoder's norms)."""
    setting = start.setting
    if bench == "relu":
        return ReLUConfig(form="decoder-norm", l1=1.0)
    if bench == "jumprelu":
        return JumpReLUConfig(init_threshold=start.threshold, bandwidth=BANDWIDTH)
    kind = TopKConfig if bench == "topk" else BatchTopKConfig
    if setting.aux:
        return kind(k=setting.k, dead_after_tokens=setting.batch)
    return kind(k=setting.k, aux_coefficient=0.0)


def trainee(bench: str, start: Start, selection: Selection) -> Trainee:
    """Without site and space, which a step on rows that are already in the space does not look at."""
    setting = start.setting
    cfg = DictionaryConfig(
        site="mlp_out@0", d_sae=setting.d_sae, architecture=architecture(bench, start), b_dec_init="zero"
    )
    training = TrainingConfig(
        batch_size=setting.batch, lr=LEARNING_RATE, warmup_steps=0, decay_fraction=0.0, selection=selection
    )
    dictionary = build_dictionary(cfg, setting.d_in, generator(0, "bench"))
    with torch.no_grad():
        dictionary.W_dec.copy_(start.W_dec)
        dictionary.encoder.copy_(start.encoder)
        if bench == "relu":
            dictionary.b_enc.fill_(-start.threshold)
    dictionary = dictionary.to(setting.device)
    return Trainee("bench", cast(Site, None), cfg, training, cast(Space, None), dictionary, start.x.var(0).sum())


def build(bench: str, start: Start, selection: Selection = "float32") -> Contender:
    """selection: the precision of the product that candidates are chosen from."""
    subject = trainee(bench, start, selection)
    guard = Guard(1, start.setting.device)
    x, rows, done, l0 = start.x, start.setting.batch, 0, torch.zeros(())

    def step() -> None:  # as in training/loop.py
        nonlocal done, l0
        guard.before(done, {})
        proposal = subject.propose(x, done)
        guard.check(done, [x], [proposal])
        subject.apply(proposal, done, STEPS, rows, guard.frozen)
        done, l0 = done + 1, proposal.terms["l0"]
        if done % LOG_EVERY == 0:
            guard.look()
            subject.averages()

    return Contender(step, lambda: float(l0))
