"""Sparse autoencoders on what the MLPs of a transformer compute.

Public names are loaded when they are first used: `import sae_tools` alone imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from sae_tools.config import JobConfig as JobConfig
    from sae_tools.config import LMConfig as LMConfig
    from sae_tools.config_loading import load_config as load_config
    from sae_tools.errors import UserError as UserError

_HOME = {
    "JobConfig": "sae_tools.config",
    "LMConfig": "sae_tools.config",
    "UserError": "sae_tools.errors",
    "load_config": "sae_tools.config_loading",
}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_tools' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
