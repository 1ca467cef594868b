"""Sparse autoencoders on what the MLPs of a transformer compute.

Public names are loaded when they are first used: `import sae_tools` alone imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from sae_tools.activations.store import Store as Store
    from sae_tools.activations.store_reader import StoreReader as StoreReader
    from sae_tools.analysis.evaluation import evaluate_dictionaries as evaluate_dictionaries
    from sae_tools.analysis.fidelity import measure_fidelity as measure_fidelity
    from sae_tools.analysis.run_with_dictionary import DictionaryRun as DictionaryRun
    from sae_tools.analysis.run_with_dictionary import measure_dictionary as measure_dictionary
    from sae_tools.analysis.run_with_dictionary import run_with_dictionary as run_with_dictionary
    from sae_tools.analysis.subject import Subject as Subject
    from sae_tools.config import DictionaryConfig as DictionaryConfig
    from sae_tools.config import JobConfig as JobConfig
    from sae_tools.config import LMConfig as LMConfig
    from sae_tools.config import RowsConfig as RowsConfig
    from sae_tools.config_eval import EvalConfig as EvalConfig
    from sae_tools.config_loading import load_config as load_config
    from sae_tools.config_report import ReportConfig as ReportConfig
    from sae_tools.dictionaries import Dictionary as Dictionary
    from sae_tools.dictionaries.formats.read import load_dictionary as load_dictionary
    from sae_tools.dictionaries.formats.write import save_dictionary as save_dictionary
    from sae_tools.errors import UserError as UserError
    from sae_tools.models.load import LanguageModel as LanguageModel
    from sae_tools.models.load import load_model as load_model
    from sae_tools.report.build import build_report as build_report
    from sae_tools.rows import Contexts as Contexts
    from sae_tools.rows import Rows as Rows
    from sae_tools.spaces import Space as Space
    from sae_tools.training.in_memory import Trained as Trained
    from sae_tools.training.in_memory import train as train
    from sae_tools.training.run import run_job as run_job
    from sae_tools.training.storing import write_store as write_store

_HOME = {
    "Contexts": "sae_tools.rows",
    "Dictionary": "sae_tools.dictionaries",
    "DictionaryConfig": "sae_tools.config",
    "DictionaryRun": "sae_tools.analysis.run_with_dictionary",
    "EvalConfig": "sae_tools.config_eval",
    "JobConfig": "sae_tools.config",
    "LMConfig": "sae_tools.config",
    "LanguageModel": "sae_tools.models.load",
    "ReportConfig": "sae_tools.config_report",
    "Rows": "sae_tools.rows",
    "RowsConfig": "sae_tools.config",
    "Space": "sae_tools.spaces",
    "Store": "sae_tools.activations.store",
    "StoreReader": "sae_tools.activations.store_reader",
    "Subject": "sae_tools.analysis.subject",
    "Trained": "sae_tools.training.in_memory",
    "UserError": "sae_tools.errors",
    "build_report": "sae_tools.report.build",
    "evaluate_dictionaries": "sae_tools.analysis.evaluation",
    "load_config": "sae_tools.config_loading",
    "load_dictionary": "sae_tools.dictionaries.formats.read",
    "load_model": "sae_tools.models.load",
    "measure_dictionary": "sae_tools.analysis.run_with_dictionary",
    "measure_fidelity": "sae_tools.analysis.fidelity",
    "run_job": "sae_tools.training.run",
    "run_with_dictionary": "sae_tools.analysis.run_with_dictionary",
    "save_dictionary": "sae_tools.dictionaries.formats.write",
    "train": "sae_tools.training.in_memory",
    "write_store": "sae_tools.training.storing",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae_tools' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
