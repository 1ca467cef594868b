"""From a model's name to a folder with its files: bundled, local, or downloaded from the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import errors as hub_errors

from sae_tools.errors import UserError

Kind = Literal["bundled", "folder", "hub"]

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "bundled"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
HUB_SECONDS = 10.0
"""How long an unreachable hub may keep us waiting (huggingface_hub alone would retry for most of a minute)."""


@dataclass(frozen=True)
class Found:
    folder: Path
    kind: Kind
    name: str
    """As the user gave it."""


def locate_model(name: str | Path, *, revision: str | None = None) -> Found:
    """Where the model's files are. `bundled` is ours, an existing folder wins over the hub, and only a name that can
    be a hub repository (`name` or `owner/name`) reaches the network. UserError otherwise."""
    text = str(name)
    if text == "bundled":
        if not (BUNDLED / "config.json").is_file():
            raise UserError(f"The bundled model is not installed: {BUNDLED} has no config.json.")
        return Found(BUNDLED, "bundled", text)
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"The folder {path} is not a Hugging Face model: it has no config.json.")
        return Found(path, "folder", text)
    if path.exists():
        raise UserError(f"The model {text} is a file; expected the folder that holds config.json and the weights.")
    if isinstance(name, Path) or not HUB_NAME.fullmatch(text):
        raise UserError(f"The model folder {path} does not exist.")
    return Found(_from_hub(text, revision), "hub", text)


def _from_hub(name: str, revision: str | None) -> Path:
    """The repository's configuration, tokenizer and safetensors, downloaded or, where the hub is out of reach, as an
    earlier download left them."""
    where = f"{name} (revision {revision})" if revision else name
    try:
        # One request that fails at once; the download below would retry for a long time.
        huggingface_hub.HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
        online = True
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"The hub model {name} has no revision {revision!r}.") from error
    except hub_errors.GatedRepoError as error:
        raise UserError(f"The hub model {name} is gated: accept its terms and log in with `hf auth login`.") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(f"There is no folder {name} here and no public model of that name on the hub.") from error
    except Exception:  # offline, no route, no name server, a proxy's refusal: each has its own class
        online = False
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*"], local_files_only=not online
        )
    except Exception as error:
        if online:
            raise UserError(f"The download of {where} from the hub failed: {type(error).__name__}.") from error
        raise UserError(
            f"There is no folder {name} here, and the hub, which may have {where}, cannot be reached; "
            f"nothing is left of an earlier download either."
        ) from error
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"The hub repository {name} is not a Hugging Face model: it has no config.json.")
    return Path(folder)
