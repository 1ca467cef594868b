"""The state that `sae-lm train --resume` continues from: weights, optimiser and position, without a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sae_tools.errors import UserError

FILE = "trainer.safetensors"


def save_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, position: dict[str, Any]) -> None:
    """Writes `trainer.safetensors`, whole or not at all. `position` is JSON-able."""
    tensors = {f"model/{name}": p.detach().cpu() for name, p in model.named_parameters()}
    numbers: dict[str, Any] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.cpu().contiguous()
            else:
                numbers[f"{index}/{name}"] = value
    metadata = {"position": json.dumps(position), "optimizer": json.dumps(numbers)}
    beside = folder / f".{FILE}.writing"
    save_file(tensors, beside, metadata=metadata)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(folder / FILE)


def load_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Fills model and optimiser from `trainer.safetensors` and returns the position.

    Raises UserError where there is none, it cannot be read, or it does not fit the model.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder}: nothing to resume (no {FILE}).")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        position, numbers = json.loads(metadata["position"]), json.loads(metadata["optimizer"])
    except Exception as error:  # safetensors raises its own class, which derives from Exception only
        raise UserError(f"{path}: not a state of this trainer ({error}).") from error
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name.removeprefix("model/"): tuple(t.shape) for name, t in tensors.items() if name.startswith("model/")}
    if expected != found:
        name = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise UserError(f"{path}: expected {name} with shape {expected.get(name)}, found {found.get(name)}.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, _, entry = rest.partition("/")
            state.setdefault(int(index), {})[entry] = value
    for name, value in numbers.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return position
