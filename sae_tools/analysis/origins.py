"""From the paths that a user gives to folders of checkpoints, each with the run it belongs to and a name to show."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.dictionaries.formats.local import folder_meant, format_at
from sae_tools.dictionaries.formats.releases import single_files
from sae_tools.dictionaries.formats.saelens import CFG, WEIGHTS
from sae_tools.errors import UserError
from sae_tools.runs.directory import RunDirectory


@dataclass(frozen=True)
class Origin:
    """One dictionary on disk."""

    path: Path
    """Folder with the configuration and the weights, or a file of dictionary_learning's."""
    run: Path | None
    """The run of ours it is in."""
    config: JobConfig | None
    """That run's."""
    dictionary: str | None
    """Its name there."""
    by_run: bool
    """Whether the run was given, not this folder."""


def find_origins(paths: list[Path]) -> list[Origin]:
    """Every dictionary at `paths`: run directories, checkpoint folders of runs, folders or files of other dictionaries.

    Raises UserError for a path that is none of them, and for one that comes twice.
    """
    if not paths:
        raise UserError("Expected a run or an SAE to show, found none.")
    origins = [origin for path in paths for origin in _origins(Path(path))]
    seen: dict[Path, Path] = {}
    for origin in origins:
        real = origin.path.resolve()
        if real in seen:
            raise UserError(f"{origin.path} is given twice.")
        seen[real] = origin.path
    return origins


def _origins(path: Path) -> list[Origin]:
    if (path / "config.yaml").is_file() and not single_files(path):  # some releases have one of their own
        run = RunDirectory.open(path)
        config = load_config(JobConfig, run.config)
        tokens = _newest(run, list(config.dictionaries))
        return [Origin(run.checkpoint(name, tokens), path, config, name, True) for name in config.dictionaries]
    path = folder_meant(path)
    if not _is_dictionary(path):
        raise UserError(f"{path} {_why_none(path)}.")
    real = path.resolve()
    run_path = real.parents[2] if real.parent.name == "checkpoints" and len(real.parents) > 2 else None
    if run_path is None or not (run_path / "config.yaml").is_file():
        return [Origin(path, None, None, None, False)]
    config = load_config(JobConfig, run_path / "config.yaml")
    if real.parents[1].name not in config.dictionaries:
        return [Origin(path, None, None, None, False)]
    return [Origin(path, run_path, config, real.parents[1].name, False)]


def _is_dictionary(path: Path) -> bool:
    try:
        format_at(path)
    except UserError:
        return False
    return True


def _why_none(path: Path) -> str:
    """What a path is that is neither a run nor an SAE, and what to give instead."""
    if not path.exists():
        return "does not exist"
    if not path.is_dir():
        return "is a file; name the folder of a run or SAE, or a report"
    real = path.resolve()
    folder = real.parent if real.name == "checkpoints" else real  # RUN/<dictionary>
    tokens = RunDirectory(folder.parent).checkpoint_tokens(folder.name)
    if tokens and (folder.parent / "config.yaml").is_file():
        newest, run = folder / "checkpoints" / str(max(tokens)), folder.parent
        if not path.is_absolute():
            newest, run = Path(os.path.relpath(newest)), Path(os.path.relpath(run))
        return f"holds all checkpoints of a dictionary; name the newest, {newest}, or the run, {run}"
    if files := single_files(path):
        return f"holds {len(files)} of a release's files; name one, such as {path / files[0]}"
    return (
        "is neither a run (it has no config.yaml) nor an SAE in a format that is read (it has no cfg.json and no ae.pt)"
    )


def _newest(run: RunDirectory, names: list[str]) -> int:
    """The newest checkpoint that every dictionary has; folders appear whole, but a killed run may lack one's last."""
    have = [
        {
            tokens
            for tokens in run.checkpoint_tokens(name)
            if all((run.checkpoint(name, tokens) / file).is_file() for file in (CFG, WEIGHTS))
        }
        for name in names
    ]
    common = set.intersection(*have)
    if not common:
        raise UserError(f"{run.path} has no checkpoint of all its dictionaries yet; wait for it, or train it further.")
    return max(common)


def name_origins(origins: list[Origin]) -> list[str]:
    """A name of letters, digits, `.`, `_` and `-` for each, no two alike: the dictionary's, after its run's and `--`
    where dictionaries of several runs or folders are shown; the folder's own name for an SAE outside runs."""
    several = len({origin.run.resolve() if origin.run else origin.path for origin in origins}) > 1
    names: list[str] = []
    runs: dict[Path, str] = {}  # runs in different folders may have one name
    for origin in origins:
        if origin.run is None or origin.dictionary is None:
            name = origin.path.resolve().name
        else:
            run = origin.run.resolve()
            alike = sum(other.name.casefold() == run.name.casefold() for other in runs if other != run)
            run_name = runs.setdefault(run, f"{run.name}-{alike + 1}" if alike else run.name)
            name = f"{run_name}--{origin.dictionary}" if several else origin.dictionary
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "sae"
        taken = {other.casefold() for other in names}  # they become files, also where case does not tell them apart
        if name.casefold() in taken and origin.run is not None:
            name = f"{name}--{origin.path.resolve().name}"  # two checkpoints of one dictionary
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}-{number}", number + 1
        names.append(unique)
    return names
