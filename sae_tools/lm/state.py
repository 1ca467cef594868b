"""The state that `sae-lm train --resume` continues from: weights, optimiser and position, without a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_tools.errors import UserError
from sae_tools.runs.tensors import load_tensors, save_tensors

FILE = "trainer.safetensors"


def save_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, position: dict[str, Any]) -> None:
    """Writes `trainer.safetensors`, whole or not at all. `position` is JSON-able."""
    tensors = {f"model/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    numbers: dict[str, Any] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                numbers[f"{index}/{name}"] = value
    save_tensors(folder / FILE, tensors, {"position": position, "optimizer": numbers})


def load_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Fills model and optimiser from `trainer.safetensors` and returns the position.

    Raises UserError where there is none, it cannot be read, or it does not fit the model.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} cannot be resumed: it has no {FILE}.")
    tensors, meta = load_tensors(path)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name.removeprefix("model/"): tuple(t.shape) for name, t in tensors.items() if name.startswith("model/")}
    if expected != found:
        name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise UserError(f"{path}: expected {name} with shape {expected.get(name)}, found {found.get(name)}.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    state: dict[int, dict[str, Any]] = {}
    entries = {name.removeprefix("optimizer/"): t for name, t in tensors.items() if name.startswith("optimizer/")}
    for name, value in {**entries, **meta["optimizer"]}.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return meta["position"]
