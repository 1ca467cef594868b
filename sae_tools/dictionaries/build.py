"""A fresh dictionary from its settings."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.config import (
    ArchitectureConfig,
    BatchTopKConfig,
    DictionaryConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    TopKConfig,
)
from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.batchtopk import BatchTopKDictionary
from sae_tools.dictionaries.gated import GatedDictionary
from sae_tools.dictionaries.initial import Project, Side, Target, initial_tensors
from sae_tools.dictionaries.jumprelu import JumpReLUDictionary
from sae_tools.dictionaries.matryoshka import MatryoshkaDictionary
from sae_tools.dictionaries.relu import ReLUDictionary
from sae_tools.dictionaries.topk import TopKDictionary

FourTensors = tuple[Tensor, Tensor, Tensor, Tensor]


def build_dictionary(
    cfg: DictionaryConfig,
    dim: int,
    generator: torch.Generator,
    sample: Float[Tensor, "rows dim"] | None = None,
    *,
    project: Project | None = None,
    target: Target | None = None,
) -> Dictionary:
    """A dictionary of `cfg.d_sae` features on rows of width `dim`, float32, on the CPU.

    generator: draws the weights. sample: rows of the space, for a `b_dec_init` that needs them. project: removes from
    vectors what no row of the space can have (`Space.project`), so that unit decoder rows are made of visible
    directions only. target: what a two-site dictionary reconstructs; `cfg.skip` gives it a skip connection.

    Decoder rows start as random directions of norm 1. The encoder starts as their copy (`tied`), or, like the decoder's
    directions then, uniform within ±1/sqrt(dim) (`kaiming`, torch's default for a linear layer). b_enc starts at zero.

    Of a two-site dictionary `tied` means that pre-activations start as those of a tied one on the linear prediction of
    what it reconstructs: encoder rows L d_i and b_enc = -c L d_i, with L the least-squares map from what is read and c
    what `b_dec_init` says of that. (With 2,048 features on the bundled model's update, from the MLP's activations or
    from its input, this left less unexplained after 150,000 tokens than random rows, the covariance in the place of L,
    or either with rows of norm 1.) W_skip starts at zero.

    Raises UserError for k, aux_k or target_l0 above d_sae.
    """
    start = initial_tensors(cfg, generator, Side(dim, sample, project), target)
    return _of_architecture(cfg.architecture, start.shared, subtract_b_dec=target is None, W_skip=start.W_skip)


def _of_architecture(architecture: ArchitectureConfig, tensors: FourTensors, **shared: Any) -> Dictionary:
    """The class that belongs to the settings; shared: settings that every class takes."""
    d_sae = len(tensors[0])
    match architecture:
        case TopKConfig():
            return TopKDictionary(*tensors, **_named(architecture, "k", "aux_k", "aux_coefficient"), **shared)
        case MatryoshkaConfig():
            named = _named(architecture, "k", "aux_k", "aux_coefficient", "threshold_rate")
            return MatryoshkaDictionary(*tensors, widths=architecture.widths_of(d_sae), **named, **shared)
        case BatchTopKConfig():
            named = _named(architecture, "k", "aux_k", "aux_coefficient", "threshold_rate")
            return BatchTopKDictionary(*tensors, **named, **shared)
        case ReLUConfig():
            return ReLUDictionary(*tensors, **_named(architecture, "form"), **shared)
        case GatedConfig():
            r_mag, b_mag = torch.zeros(2, d_sae)
            return GatedDictionary(*tensors, r_mag, b_mag, **_named(architecture, "form"), **shared)
        case JumpReLUConfig():
            threshold = torch.full((d_sae,), architecture.init_threshold)
            named = _named(architecture, "bandwidth", "penalty", "target_l0")
            return JumpReLUDictionary(*tensors, threshold, **named, **shared)


def _named(architecture: ArchitectureConfig, *names: str) -> dict[str, Any]:
    return {name: getattr(architecture, name) for name in names}
