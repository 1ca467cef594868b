"""A run directory: made under a free name, opened again, and brought back to a checkpoint."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_tools.config import Section
from sae_tools.config_loading import dump_config
from sae_tools.errors import UserError
from sae_tools.runs import atomic, checkpoints
from sae_tools.runs.density import drop_windows_after, window_files
from sae_tools.runs.lock import take_lock


class RunDirectory:
    """`path` and the places in it (see runs/__init__.py). Reading needs no lock; a process that writes holds one."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    @staticmethod
    def create(runs_dir: Path, name: str) -> RunDirectory:
        """A new, empty run directory: `name`, or if that is taken `name-2`, `name-3`, …: the next that is free.

        Two processes that ask at once get two. Raises UserError where it cannot be made.
        """
        number = 1
        try:
            os.makedirs(runs_dir, exist_ok=True)
            while True:
                path = Path(runs_dir, name if number == 1 else f"{name}-{number}")
                try:
                    os.mkdir(path)
                except FileExistsError:
                    number += 1
                else:
                    break
        except OSError as error:
            raise UserError(f"no run can be made in {runs_dir} ({error.strerror}).") from None
        run = RunDirectory(path)
        run._take_lock()
        return run

    @staticmethod
    def open(path: str | Path) -> RunDirectory:
        """A run that is there, to read it or, after `drop_after`, to go on with it. Raises UserError if it is none."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: there is no such run directory.")
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} is no run of sae_tools: it has no config.yaml.")
        return RunDirectory(path)

    # -------------------------------------------------------------------------------------------------------- places

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def analysis(self) -> Path:
        return self.path / "analysis"

    def checkpoint(self, dictionary: str, tokens: int) -> Path:
        return checkpoints.checkpoint_folder(self.path, dictionary, tokens)

    def checkpoint_tokens(self, dictionary: str) -> list[int]:
        """Tokens of the dictionary's checkpoints, ascending."""
        return checkpoints.checkpoint_tokens(self.path, dictionary)

    def density(self, dictionary: str) -> Path:
        return self.path / dictionary / "density"

    def density_file(self, dictionary: str, window: int) -> Path:
        return self.density(dictionary) / f"{window:04d}.safetensors"

    def density_files(self, dictionary: str) -> list[Path]:
        return window_files(self.density(dictionary))

    # ------------------------------------------------------------------------------------------------------- writing

    def write_config(self, config: Section) -> None:
        """Put the resolved configuration into the run. Raises UserError where no space is left."""
        atomic.write_text(self.config, dump_config(config))

    @contextmanager
    def checkpoint_writer(self, dictionary: str, tokens: int) -> Iterator[Path]:
        """Yield a folder to fill, which becomes the dictionary's checkpoint at `tokens`; complete once committed."""
        checkpoints.uncommit(self.path, tokens)
        with atomic.creating_folder(self.checkpoint(dictionary, tokens)) as folder:
            yield folder

    def commit_checkpoint(self, tokens: int, state: dict[str, Any]) -> None:
        """Make the checkpoint at `tokens`, of all dictionaries that have a folder there, the newest complete one.

        state: JSON-able; `newest_checkpoint` gives it back. Frees what older checkpoints no longer need for --resume.
        """
        names = sorted(folder.parents[1].name for folder in self.path.glob(f"*/checkpoints/{tokens}"))
        checkpoints.commit(self.path, tokens, names, state)

    def newest_checkpoint(self) -> dict[str, Any] | None:
        """The state committed with the newest complete checkpoint; None before the first. UserError if damaged."""
        return checkpoints.newest(self.path)

    def drop_after(self, tokens: int) -> None:
        """Become this run's writer and remove what lies past `tokens`: checkpoints, density windows, leftovers.

        -1 removes the metrics too: the run begins anew. (Otherwise `MetricsWriter(…, resume_at=step)` trims them.)
        Raises UserError, before anything is removed, if another process is writing this run.
        """
        self._take_lock()
        atomic.remove_leftovers(self.path)
        checkpoints.drop_after(self.path, tokens)
        for folder in self.path.glob("*/density"):
            drop_windows_after(folder, tokens)
        if tokens < 0:
            self.metrics.unlink(missing_ok=True)

    def remove_if_unused(self) -> None:
        """Remove a run that has nothing but its configuration, after a failure that is the user's to mend."""
        if {path.name for path in self.path.iterdir()} <= {"config.yaml", ".lock"}:
            self.release_lock()
            shutil.rmtree(self.path)

    def _take_lock(self) -> None:
        """Hold `.lock` until `release_lock`, or until the process ends, however it ends (the system releases it)."""
        if self._lock is None:
            self._lock = take_lock(self.path)

    def release_lock(self) -> None:
        """This process has written what it wanted; another may go on with the run (or this one, by `drop_after`)."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None
