"""The reports that the tests look at; each is made once for all processes of a test run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sae_tools.config_report import ReportConfig
from sae_tools.report.write import write_report
from sae_tools.runs.tensors import load_tensors
from tests.jobs import job_config
from tests.report.browser.hostile import hostile_corpus, hostile_model
from tests.report.synthetic import synthetic_contents, synthetic_run


@dataclass(frozen=True)
class Report:
    page: Path
    """The file, or the folder's index.html."""
    files: Path
    """Folder of the feature files."""
    runs: tuple[Path, ...] = ()

    @cached_property
    def truth(self) -> dict[str, dict[str, np.ndarray]]:
        """Arrays of the feature files, by dictionary."""
        return {
            path.stem: {name: tensor.numpy() for name, tensor in load_tensors(path)[0].items()}
            for path in sorted(self.files.glob("*.safetensors"))
            if not path.stem.startswith("corpus-")
        }

    @cached_property
    def meta(self) -> dict[str, dict]:
        return {id: load_tensors(self.files / f"{id}.safetensors")[1] for id in self.truth}


Make = Callable[[Path], Report]


class Workshop:
    """Makes what it is asked for in `folder`, unless another process of the test run has done so."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: dict[str, Report] = {}

    def make(self, name: str, make: Make) -> Report:
        """`make(empty folder)`, or what it gave before: paths of a Report must not depend on the process."""
        if name not in self.made:
            folder, done = self.folder / name, self.folder / f"{name}.done"
            with FileLock(self.folder / f"{name}.lock"):
                if not done.exists():
                    folder.mkdir()
                    report = make(folder)
                    lines = [report.page, report.files, *report.runs]
                    done.write_text("\n".join(str(path.relative_to(folder)) for path in lines))
            page, files, *runs = (folder / line for line in done.read_text().split("\n"))
            self.made[name] = Report(page, files, tuple(runs))
        return self.made[name]


def synthetic(folder: Path, *, sharded: bool = False, **settings: int) -> Report:
    """400 made-up features in each of three dictionaries, dead, ultra-rare, rare and dense ones among them."""
    sizes = {"features": 400, "contexts": 96, "windows": 24, **settings}
    run = synthetic_run(folder, **sizes)  # type: ignore[arg-type]
    contents = synthetic_contents([run], sharded=sharded)
    page = write_report(contents, folder / ("report" if sharded else "report.html"))
    return Report(page, run / "analysis" / "features", (run,))


def sharded(folder: Path) -> Report:
    return synthetic(folder, sharded=True, features=300, dictionaries=2, contexts=32)


def trained(folder: Path, name: str = "job", **changes: Any) -> Path:
    """The run directory of a tiny job."""
    from sae_tools.training.run import run_job

    folder.mkdir(exist_ok=True)
    return run_job(job_config(folder, name=name, **changes)).run.path


def measured(page: Path, *runs: Path, **settings: Any) -> Report:
    """Everything for real, from run directories."""
    from sae_tools.report.build import build_report

    cfg = ReportConfig(tokens=2000, chunk=16, effect_contexts=4, threads=1, device="cpu", **settings)
    shown = build_report(list(runs), cfg, page)
    files = runs[0] / "analysis" if len(runs) == 1 else page.with_name(f"{page.stem}.analysis")
    return Report(shown, files / "features", runs)


def real(folder: Path) -> Report:
    """One tiny job, its four dictionaries measured on held-out text."""
    return measured(folder / "report.html", trained(folder))


def several(folder: Path) -> Report:
    """Two tiny jobs on one text side by side; their dictionaries have the same names."""
    first = trained(folder / "a", "first")
    second = trained(folder / "b", "second", seed=1, data__source=str(folder / "a" / "corpus.jsonl"))
    return measured(folder / "both.html", first, second)


def hostile(folder: Path) -> Report:
    """A job whose model, vocabulary and text are hostile."""
    model, corpus = hostile_model(folder), hostile_corpus(folder)
    return measured(
        folder / "report.html", trained(folder, "hostile", model__name=str(model), data__source=str(corpus))
    )
