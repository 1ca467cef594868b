"""What a library's dictionary has to offer for a comparison, whichever library it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from sae_tools.dictionaries.formats.support import Architecture


class Peer(NamedTuple):
    """A dictionary of the library's own class."""

    name: str
    """The class."""
    encode: Callable[[Tensor], Tensor]
    """Rows to activations [rows, d_sae], as its inference has them."""
    forward: Callable[[Tensor], Tensor]
    norms: Float[Tensor, " d_sae"]
    """How long the vector is that an activation of 1 adds."""
    save: Callable[[Path], object]
    """Write it as the library writes it."""


class Fresh(NamedTuple):
    """What a library has trained and written itself."""

    architecture: Architecture
    name: str
    """Which of its files it is, in the table's words."""
    path: Path
    peer: Peer
    """The same weights in the library's own hands."""
    site: str
    """Whose rows it reads."""
    says: dict[str, str]
    """What its metadata have to say, read by us."""
