"""A fresh dictionary from its settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.config import BatchTopKConfig, DictionaryConfig, JumpReLUConfig, TopKConfig
from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.batchtopk import BatchTopKDictionary
from sae_tools.dictionaries.jumprelu import JumpReLUDictionary
from sae_tools.dictionaries.median import geometric_median, mean_of_rows
from sae_tools.dictionaries.relu import ReLUDictionary
from sae_tools.dictionaries.topk import TopKDictionary


def build_dictionary(
    cfg: DictionaryConfig,
    dim: int,
    generator: torch.Generator,
    sample: Float[Tensor, "rows dim"] | None = None,
    *,
    project: Callable[[Float[Tensor, "rows dim"]], Float[Tensor, "rows dim"]] | None = None,
) -> Dictionary:
    """A dictionary of `cfg.d_sae` features on rows of width `dim`, float32, on the CPU.

    generator: draws the weights. sample: rows of the space, for a `b_dec_init` that needs them. project: removes from
    vectors what no row of the space can have (`Space.project`), so that unit decoder rows are made of visible
    directions only.

    Decoder rows start as random directions of norm 1. The encoder starts as their copy (`tied`), or, like the decoder's
    directions then, uniform within ±1/sqrt(dim) (`kaiming`, torch's default for a linear layer). b_enc starts at zero.

    Raises UserError for k, aux_k or target_l0 above d_sae.
    """
    d_sae, architecture = cfg.d_sae, cfg.architecture

    def draw() -> Float[Tensor, "d_sae dim"]:
        if cfg.encoder_init == "tied":
            rows = torch.randn(d_sae, dim, generator=generator)
        else:
            rows = (2 * torch.rand(d_sae, dim, generator=generator) - 1) / dim**0.5
        return rows if project is None else project(rows.to(device)).cpu()

    device = "cpu" if sample is None else sample.device
    W_dec = torch.nn.functional.normalize(draw(), dim=-1)
    encoder = W_dec.clone() if cfg.encoder_init == "tied" else draw()
    tensors = (encoder, torch.zeros(d_sae), W_dec, _initial_bias(cfg, dim, sample))
    if isinstance(architecture, TopKConfig):
        return TopKDictionary(
            *tensors, k=architecture.k, aux_k=architecture.aux_k, aux_coefficient=architecture.aux_coefficient
        )
    if isinstance(architecture, BatchTopKConfig):
        return BatchTopKDictionary(
            *tensors,
            k=architecture.k,
            aux_k=architecture.aux_k,
            aux_coefficient=architecture.aux_coefficient,
            threshold_rate=architecture.threshold_rate,
        )
    if isinstance(architecture, JumpReLUConfig):
        return JumpReLUDictionary(
            *tensors,
            torch.full((d_sae,), architecture.init_threshold),
            bandwidth=architecture.bandwidth,
            penalty=architecture.penalty,
            target_l0=architecture.target_l0,
        )
    return ReLUDictionary(*tensors, form=architecture.form)


def _initial_bias(cfg: DictionaryConfig, dim: int, sample: Tensor | None) -> Float[Tensor, " dim"]:
    if cfg.b_dec_init == "zero":
        return torch.zeros(dim)
    if sample is None or sample.shape[0] == 0:
        raise ValueError(f"b_dec_init '{cfg.b_dec_init}' needs a sample of rows")
    bias = mean_of_rows(sample) if cfg.b_dec_init == "mean" else geometric_median(sample)
    return bias.float().cpu()
