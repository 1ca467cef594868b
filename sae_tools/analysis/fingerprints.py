"""What a measurement of features was made from: it is good for as long as none of that changes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from sae_tools.analysis.subject import Subject
from sae_tools.dictionaries.formats.parts import KIND_OF


def architecture(subject: Subject) -> dict[str, Any]:
    """JSON-able: what of a dictionary does not stand in its weights."""
    k = getattr(subject.dictionary, "k", None)
    return {"architecture": KIND_OF[type(subject.dictionary)]} | ({} if k is None else {"k": k})


def subject_fingerprint(subject: Subject) -> str:
    """Over everything that decides what the features are: weights, architecture, space and site."""
    spaces = {"space": subject.space}
    if subject.target_space is not None:
        spaces["target_space"] = subject.target_space
    described: dict[str, Any] = {}
    named = dict(subject.dictionary.state_dict())
    for key, space in spaces.items():
        tensors, described[key] = space.state()
        named |= {f"{key}.{name}": tensor for name, tensor in tensors.items()}
    content = hashlib.blake2b(digest_size=16)
    for name in sorted(named):
        tensor = named[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest({"weights": content.hexdigest(), **described, **architecture(subject)})


def digest(value: Any) -> str:
    """32 hex digits over something JSON-able."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
