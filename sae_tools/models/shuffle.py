"""A model that has learnt nothing, with the learnt one's statistics: each weight matrix's entries in a random order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sae_tools.models.capture import trusted_view
from sae_tools.models.language_model import LanguageModel
from sae_tools.models.unwrap import model_parameters
from sae_tools.seeds import generator


@contextmanager
def shuffled_weights(model: LanguageModel, seed: int) -> Iterator[LanguageModel]:
    """While open, the entries of every weight matrix of the model (two dimensions and more, embeddings too, tied ones
    once) stand in a random order; norms' weights and biases stay. Afterwards they are back, bit for bit.

    In place, so that it takes no second model: nothing else may use the model meanwhile.
    """
    trusted_view(model, [])  # compared with the bridge while both still compute the same
    done: list[Tensor] = []
    try:
        for number, matrix in enumerate(_matrices(model)):
            _permute(matrix, _order(matrix, seed, number), back=False)
            done.append(matrix)
        yield model
    finally:
        for number, matrix in enumerate(done):
            _permute(matrix, _order(matrix, seed, number), back=True)


def _matrices(model: LanguageModel) -> list[Tensor]:
    """The model's own, and the copies that TransformerLens makes of some (fused q, k and v), each storage once."""
    found: dict[int, Tensor] = {}
    for parameter in (*model_parameters(model.bridge), *model.bridge.parameters()):
        if parameter.dim() > 1:
            found.setdefault(parameter.untyped_storage().data_ptr(), parameter)
    return list(found.values())


def _order(matrix: Tensor, seed: int, number: int) -> Tensor:
    return torch.randperm(matrix.numel(), generator=generator(seed, "shuffled weights", number))


@torch.no_grad()
def _permute(matrix: Tensor, order: Tensor, back: bool) -> None:
    order = order.to(matrix.device)
    flat = matrix.detach().reshape(-1)
    if back:
        new = torch.empty_like(flat)
        new[order] = flat
    else:
        new = flat[order]
    matrix.data.copy_(new.view(matrix.shape))
