"""sae_tools, by the functions that training/loop.py calls."""

from __future__ import annotations

from typing import Any, cast

import torch

import sae_tools.config as config
from contenders.start import BANDWIDTH, LEARNING_RATE, Contender, Start
from sae_tools.config import DictionaryConfig, TrainingConfig
from sae_tools.dictionaries import build_dictionary
from sae_tools.models.sites import Site
from sae_tools.seeds import generator
from sae_tools.spaces import Space
from sae_tools.training.guard import Guard
from sae_tools.training.trainee import Trainee

LOG_EVERY = 50
STEPS = 10**9
"""Of the run that is timed: too many for the learning rate's decay to begin."""


class Missing(Exception):
    """This version of sae_tools does not have what was to be timed."""


def architecture(bench: str, start: Start) -> Any:
    """The bench's configuration; penalties are as SAELens defines them (the L1 weighted by the decoder's norms)."""
    setting = start.setting
    aux = {"dead_after_tokens": setting.batch} if setting.aux else {"aux_coefficient": 0.0}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "topk": ("TopKConfig", {"k": setting.k, **aux}),
        "relu": ("ReLUConfig", {"form": "decoder-norm", "l1": 1.0}),
        "batchtopk": ("BatchTopKConfig", {"k": setting.k, **aux}),
        "jumprelu": ("JumpReLUConfig", {"bandwidth": BANDWIDTH}),
    }
    name, settings = kinds[bench]
    if not hasattr(config, name):
        raise Missing(f"sae_tools has no {name}")
    kind = getattr(config, name)
    unknown = set(settings) - set(kind.model_fields)
    return kind(**{key: value for key, value in settings.items() if key not in unknown})


def training_config(batch: int, selection: str) -> TrainingConfig:
    """selection: `float32` or `bfloat16`, the precision in which candidates are chosen."""
    settings: dict[str, Any] = {"batch_size": batch, "lr": LEARNING_RATE, "warmup_steps": 0, "decay_fraction": 0.0}
    if "selection" in TrainingConfig.model_fields:
        settings["selection"] = selection
    elif selection != "float32":
        raise Missing(f"sae_tools has no training.selection = {selection}")
    return TrainingConfig(**settings)


def trainee(bench: str, start: Start, selection: str) -> Trainee:
    """Without site and space, which a step on rows that are already in the space does not look at."""
    setting = start.setting
    cfg = DictionaryConfig(
        site="mlp_out@0", d_sae=setting.d_sae, architecture=architecture(bench, start), b_dec_init="zero"
    )
    training = training_config(setting.batch, selection)
    dictionary = build_dictionary(cfg, setting.d_in, generator(0, "bench"))
    with torch.no_grad():
        dictionary.W_dec.copy_(start.W_dec)
        dictionary.encoder.copy_(start.encoder)
        if bench == "relu":
            dictionary.b_enc.fill_(-start.threshold)
        if bench == "jumprelu":
            set_threshold(dictionary, start.threshold)
    dictionary = dictionary.to(setting.device)
    return Trainee("bench", cast(Site, None), cfg, training, cast(Space, None), dictionary, start.x.var(0).sum())


def set_threshold(dictionary: Any, threshold: float) -> None:
    """The threshold of every feature of a JumpReLU dictionary."""
    if hasattr(dictionary, "log_threshold"):
        dictionary.log_threshold.fill_(threshold).log_()
    else:
        dictionary.threshold.fill_(threshold)


def build(bench: str, start: Start, selection: str = "float32") -> Contender:
    """Raises Missing where sae_tools does not have it."""
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
