"""A dictionary taken apart into tensors and settings, whatever its architecture: what formats read and write."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.batchtopk import BatchTopKDictionary
from sae_tools.dictionaries.gated import GatedDictionary
from sae_tools.dictionaries.jumprelu import JumpReLUDictionary
from sae_tools.dictionaries.matryoshka import MatryoshkaDictionary
from sae_tools.dictionaries.relu import ReLUDictionary
from sae_tools.dictionaries.topk import TopKDictionary


@dataclass(frozen=True)
class Kind:
    """An architecture, as far as files are concerned."""

    cls: type[Dictionary]
    features: tuple[str, ...] = ()
    """Its own tensors [d_sae], in the order of the constructor."""
    settings: tuple[str, ...] = ()
    """What else the constructor takes by name and the dictionary has as attributes; tensors among them are scalars."""
    unit: dict[str, Any] = field(default_factory=dict)
    """Settings of a dictionary whose decoder rows have norm 1 where it was trained."""
    free: dict[str, Any] = field(default_factory=dict)
    """Settings of one whose decoder rows may have any norm."""
    rescales: bool = True
    """Whether a feature's encoder may be multiplied and its decoder divided by one number without any effect: not
    where features compete by their pre-activations, or share a threshold."""


TOPK = ("k", "aux_k", "aux_coefficient")
BATCH = (*TOPK, "threshold_rate", "threshold")
KINDS = {
    "relu": Kind(ReLUDictionary, (), ("form",), {"form": "unit-norm"}, {"form": "decoder-norm"}),
    "topk": Kind(TopKDictionary, (), TOPK, rescales=False),
    "batchtopk": Kind(BatchTopKDictionary, (), BATCH, rescales=False),
    "matryoshka": Kind(MatryoshkaDictionary, (), (*BATCH, "widths"), rescales=False),
    "jumprelu": Kind(
        JumpReLUDictionary,
        ("threshold",),
        ("bandwidth", "penalty", "target_l0", "unit_decoder"),
        {"unit_decoder": True},
        {"unit_decoder": False},
    ),
    "gated": Kind(GatedDictionary, ("r_mag", "b_mag"), ("form",), {"form": "unit-norm"}, {"form": "decoder-norm"}),
}
KIND_OF = {kind.cls: name for name, kind in KINDS.items()}
SCALED = ("threshold", "b_mag")
"""Of the tensors [d_sae], those in the unit of pre-activations."""


@dataclass(frozen=True)
class Parts:
    """Everything that makes a dictionary; names and layouts are those of `Dictionary`."""

    kind: str
    """A key of KINDS."""
    encoder: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    features: dict[str, Float[Tensor, " d_sae"]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    subtract_b_dec: bool = True

    @property
    def d_in(self) -> int:
        return self.encoder.shape[1]

    @property
    def d_sae(self) -> int:
        return self.encoder.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        named = {"encoder": self.encoder, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return named | self.features | ({} if self.W_skip is None else {"W_skip": self.W_skip})


@torch.no_grad()
def take_apart(dictionary: Dictionary) -> Parts:
    """Tensors are the dictionary's own, detached."""
    kind = KIND_OF[type(dictionary)]
    settings = {name: getattr(dictionary, name) for name in KINDS[kind].settings}
    return Parts(
        kind,
        *(getattr(dictionary, name).detach() for name in ("encoder", "b_enc", "W_dec", "b_dec")),
        features={name: getattr(dictionary, name).detach() for name in KINDS[kind].features},
        settings={name: s.item() if isinstance(s, Tensor) else s for name, s in settings.items()},
        W_skip=None if dictionary.W_skip is None else dictionary.W_skip.detach(),
        subtract_b_dec=dictionary.subtract_b_dec,
    )


def put_together(parts: Parts) -> Dictionary:
    """The dictionary, of tensors that the parts share with it. Raises UserError for settings that it cannot have."""
    return KINDS[parts.kind].cls(
        parts.encoder,
        parts.b_enc,
        parts.W_dec,
        parts.b_dec,
        *(parts.features[name] for name in KINDS[parts.kind].features),  # pyright: ignore[reportCallIssue]
        **parts.settings,
        subtract_b_dec=parts.subtract_b_dec,
        W_skip=parts.W_skip,
    )


def rescaled(parts: Parts, scaling: Float[Tensor, " d_sae"]) -> Parts:
    """Pre-activations times `scaling` (> 0), decoder rows divided by it; b_mag and thresholds of single features go
    along. That leaves the reconstruction as it is where `Kind.rescales`; elsewhere selection changes."""
    scaling = scaling.to(parts.encoder.dtype)  # float64 copies of whole matrices would be large
    column = scaling.unsqueeze(1)
    return replace(
        parts,
        encoder=parts.encoder * column,
        b_enc=parts.b_enc * scaling,
        W_dec=parts.W_dec / column,
        features={name: t * scaling if name in SCALED else t for name, t in parts.features.items()},
    )


def shifted(parts: Parts, shift: Float[Tensor, " d_sae"]) -> Parts:
    """What x W_enc is short of by `shift`, made up for in the biases: of the gate and, times exp(r_mag), of the
    magnitude."""
    features = dict(parts.features)
    if "b_mag" in features:
        features["b_mag"] = (features["b_mag"] + shift * features["r_mag"].double().exp()).to(features["b_mag"].dtype)
    return replace(parts, b_enc=(parts.b_enc + shift).to(parts.b_enc.dtype), features=features)


def unit_scaling(W_dec: Float[Tensor, "d_sae d_out"]) -> Float[Tensor, " d_sae"]:
    """The rows' norms in float64, 1 for a row of zeros."""
    norms = torch.linalg.vector_norm(W_dec, dim=-1, dtype=torch.float64)
    return torch.where(norms > 0, norms, 1.0)
