"""Which checkpoints of a run are complete.

A checkpoint is a folder for every dictionary and `state/<tokens>.json`, written last. That file makes it complete: it
names the folders' files with their sizes, and holds what is the job's and not a dictionary's (the step, where the data
stood). A process killed before it was written leaves the checkpoint before as the newest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_tools.errors import UserError
from sae_tools.runs import atomic

RESUMABLE = 2
"""How many checkpoints keep what --resume needs: the newest, and the one before in case the newest is damaged."""

SPACE, TARGET_SPACE = "space.safetensors", "target_space.safetensors"
"""The coordinates that a dictionary was trained in, and those of what a two-site dictionary writes."""
TRAINER_FILE = "trainer.safetensors"
"""The large file of a checkpoint that only --resume reads."""


def checkpoint_folder(run: Path, dictionary: str, tokens: int) -> Path:
    return run / dictionary / "checkpoints" / str(tokens)


def checkpoint_tokens(run: Path, dictionary: str) -> list[int]:
    """Tokens of the dictionary's checkpoints that are there, complete for --resume or not, ascending."""
    folder = run / dictionary / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal() and p.is_dir())


def commit(run: Path, tokens: int, dictionaries: list[str], state: dict[str, Any]) -> None:
    """Make the checkpoint at `tokens` the newest complete one; then free what older ones no longer need.

    The dictionaries' folders must be there. state: JSON-able, given back by `newest`.
    """
    files = {
        name: {path.name: path.stat().st_size for path in sorted(checkpoint_folder(run, name, tokens).iterdir())}
        for name in dictionaries
    }
    (run / "state").mkdir(exist_ok=True)
    atomic.write_json(_state_file(run, tokens), {"tokens": tokens, "files": files, "state": state})
    for older in _committed(run)[:-RESUMABLE]:
        _state_file(run, older).unlink()
    for name in dictionaries:
        for older in checkpoint_tokens(run, name):
            if older not in _committed(run):
                (checkpoint_folder(run, name, older) / TRAINER_FILE).unlink(missing_ok=True)


def uncommit(run: Path, tokens: int) -> None:
    """The checkpoint at `tokens`, if there is one, is complete no more (it is about to be written again)."""
    _state_file(run, tokens).unlink(missing_ok=True)


def newest(run: Path) -> dict[str, Any] | None:
    """The state that was committed with the newest complete checkpoint; None before the first.

    Raises UserError if that checkpoint is damaged: it is not passed over in silence, since going on from an older one
    deletes what lies past it.
    """
    committed = _committed(run)
    if not committed:
        return None
    marker = _state_file(run, committed[-1])
    advice = f"remove {marker} to continue from the checkpoint before" if len(committed) > 1 else "it cannot be resumed"
    try:
        content = atomic.read_json(marker)
        for name, files in content["files"].items():
            folder = checkpoint_folder(run, name, content["tokens"])
            for file, size in files.items():
                if not (folder / file).is_file():
                    raise UserError(f"{folder / file} is missing.")
                if (folder / file).stat().st_size != size:
                    raise UserError(f"{folder / file} has {(folder / file).stat().st_size} bytes instead of {size}.")
        return content["state"]
    except UserError as error:
        raise UserError(f"the newest checkpoint is damaged, {str(error).rstrip('.')}; {advice}.") from None
    except (KeyError, AttributeError, TypeError):
        raise UserError(f"{marker} does not describe a checkpoint; {advice}.") from None


def drop_after(run: Path, tokens: int) -> None:
    """Remove every checkpoint past `tokens`, complete or half there; -1: all."""
    for later in _committed(run):
        if later > tokens:
            _state_file(run, later).unlink()
    for folder in run.glob("*/checkpoints"):
        for later in checkpoint_tokens(run, folder.parent.name):
            if later > tokens:
                atomic.remove_folder(folder / str(later))


def _state_file(run: Path, tokens: int) -> Path:
    return run / "state" / f"{tokens}.json"


def _committed(run: Path) -> list[int]:
    return sorted(int(path.stem) for path in (run / "state").glob("*.json") if path.stem.isdecimal())
