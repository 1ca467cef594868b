"""What every test shares: no network, one thread per process, and the optional folder of real models and text."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before anything imports torch or huggingface_hub, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell lets what it starts in its background ignore Ctrl-C, and so would every command that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.shapes import checked

install_import_hook("sae_tools", f"{checked.__module__}.{checked.__name__}")

settings.register_profile("sae_tools", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("sae_tools")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models, text and tokenizers that developers have beside the repository, and users do not."""
    folder = Path(os.environ.get("SAE_TOOLS_SHARED") or ROOT.parent / "shared")
    if not (folder / "models" / "stories260K").is_dir():
        pytest.skip(f"needs the developers' folder of real models and text, and {folder} is not it (SAE_TOOLS_SHARED)")
    return folder
