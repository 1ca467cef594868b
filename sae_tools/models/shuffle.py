"""A model that has learnt nothing, with the learnt one's statistics: each weight matrix's entries in a random order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sae_tools.models.capture import trusted_view
from sae_tools.models.language_model import LanguageModel
from sae_tools.models.unwrap import model_parameters
from sae_tools.seeds import generator


def shuffle_weights_(module: torch.nn.Module, seed: int) -> None:
    """Put the entries of every weight matrix of the module (two dimensions and more, embeddings too, tied ones once)
    in a random order, in place and for good; norms' weights and biases stay."""
    for number, matrix in enumerate(_once(module.parameters())):
        _permute(matrix, _order(matrix, seed, number), back=False)


@contextmanager
def shuffled_weights(model: LanguageModel, seed: int) -> Iterator[LanguageModel]:
    """While open, weights stand as `shuffle_weights_` puts them; afterwards they are back, bit for bit.

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
    """The model's own, and the copies that TransformerLens makes of some (fused q, k and v)."""
    return _once((*model_parameters(model.bridge), *model.bridge.parameters()))


def _once(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those of two dimensions and more, each storage once."""
    found: dict[int, Tensor] = {}
    for parameter in parameters:
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
