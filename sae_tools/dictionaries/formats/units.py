"""The last step of reading: decoder norms are folded where that changes nothing, and words for an activation's unit.

A feature's activation means nothing without the norm of its decoder row. Where the encoder may be multiplied by it
without any effect (each feature decides for itself: ReLU, JumpReLU, Gated) that is done, and activations are then how
much of a direction the reconstruction has. Where features compete by their pre-activations it would change which ones
win: these are left alone, and `Dictionary.decoder_norms` says what an activation of 1 adds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.folding import fold, on_cpu
from sae_tools.dictionaries.formats.parts import KINDS, Parts, put_together, rescaled, unit_scaling
from sae_tools.errors import UserError

FOLDED = "of what is written: the decoder rows have norm 1, their norms were folded into the encoder on reading"
UNIT = "of what is written: the decoder rows have norm 1"
FREE = (
    "of the file: an activation of 1 adds the decoder row as it is, of a norm of its own for each feature "
    "(decoder_norms)"
)


@torch.no_grad()
def finished(
    parts: Parts, metadata: dict[str, Any], path: Path, *, unit_norms: bool
) -> tuple[Dictionary, dict[str, Any]]:
    """(dictionary, metadata with d_in, d_sae, d_out and activation_unit; the dictionary's own is the same).

    unit_norms: rescale features to decoder rows of norm 1 where that changes nothing. path: for the sentence of the
    UserError where the weights' products overflow.
    """
    scaling = unit_scaling(parts.W_dec)
    unit = UNIT if bool(((scaling - 1).abs() < 1e-4).all()) else FREE
    if unit_norms and KINDS[parts.kind].rescales and unit == FREE:
        parts, unit = rescaled(parts, scaling), FOLDED
    parts = on_cpu(parts)
    if "r_mag" in parts.features and not bool(parts.features["r_mag"].exp().isfinite().all()):
        raise UserError(f"{path}: r_mag is so large that exp(r_mag) is not finite.")
    if not all(bool(torch.isfinite(torch.stack(torch.aminmax(t))).all()) for t in parts.tensors().values()):
        raise UserError(f"{path}: its weights are so large that products of them are not finite.")
    dictionary = put_together(replace(parts, settings=dict(parts.settings)))
    said = metadata.get("activation_unit")  # of the file's activations, which folding changes
    dictionary.metadata = {
        **metadata,
        "d_in": parts.d_in,
        "d_sae": parts.d_sae,
        "d_out": parts.d_out,
        "activation_unit": said if isinstance(said, str) and unit != FOLDED else unit,
    }
    return dictionary, dict(dictionary.metadata)


def as_written(dictionary: Dictionary, metadata: dict[str, Any]) -> tuple[Parts, dict[str, Any]]:
    """(parts, metadata) of a dictionary that is written in the coordinates that it is in.

    Where the metadata says what a unit of activation is, that stays; else decoder norms are folded where that changes
    nothing, as on reading.
    """
    said = metadata.get("activation_unit")
    parts = fold(dictionary, None, unit_norms=not isinstance(said, str))
    unit = bool(((unit_scaling(parts.W_dec) - 1).abs() < 1e-4).all())
    return parts, {**metadata, "activation_unit": said if isinstance(said, str) else UNIT if unit else FREE}
