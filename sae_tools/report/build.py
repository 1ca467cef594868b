"""From run directories to the report: open what is to be shown, measure its features, pack them into a page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import sae_tools
from sae_tools.analysis.features import measure_features
from sae_tools.analysis.sources import Group, Source, open_sources
from sae_tools.config import DataConfig
from sae_tools.config_report import ReportConfig
from sae_tools.errors import UserError
from sae_tools.models.language_model import LanguageModel, title
from sae_tools.models.parameters import parameter_count
from sae_tools.report.contents import ModelShown, load_contents, model_card
from sae_tools.report.marker import is_report
from sae_tools.report.write import NOT_REPLACED, Progress, build_date, quiet, replaceable, write_report


def build_report(
    paths: str | Path | Sequence[str | Path],
    cfg: ReportConfig | None = None,
    output: str | Path | None = None,
    *,
    model: LanguageModel | None = None,
    progress: Progress = quiet,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Measure the features of runs and SAEs and write their report; returns the path of its page.

    paths: runs of ours (every dictionary at its newest complete checkpoint), or dictionaries in a format that is read.
    output: the file, or the folder where there are more than `cfg.shard_above` features (its page is index.html);
        None: `report.html` (`report/`) in the run, or in the current directory if `paths` is not one run. There only a
        report is replaced; a file that is named is replaced whatever it is, a folder only if it is empty, or a report
        and nothing else.
    model: the language model if it is in memory, instead of loading it.
    progress: called with the stage, how much of it is done, and of how much.
    say: called with a line for each thing that was taken for granted, such as the text of an SAE that names none.

    What was measured is kept in the run (`analysis/features/`; otherwise beside the report, in `<output>.analysis/`),
    so that a call that was interrupted goes on, and one that changes only how it is shown (`chunk`, `shard_above`)
    measures nothing. One measurement of a run is kept: with another `tokens`, or any other setting that decides what
    is measured, its features are measured again and the files replaced.

    The report holds all that it shows: besides figures the configurations, the model's card, its vocabulary, and the
    held-out text on which features were measured, as token ids. Give it only to whom you would give these.
    Raises UserError, one sentence, for what the user can mend.
    """
    cfg = cfg or ReportConfig()
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    groups = open_sources(paths, cfg, model)
    sources = [source for group in groups for source in group.sources]
    for line in dict.fromkeys(note for source in sources for note in source.notes):
        say(line)
    sharded = sum(source.subject.dictionary.d_sae for source in sources) > cfg.shard_above
    run = paths[0] if len(paths) == 1 and (paths[0] / "config.yaml").is_file() else None
    target = choose_output(output, run, sharded)
    must_be_writable(target.parent)
    folder = features_folder(run, target)
    measure_features(groups, cfg, folder, progress)
    contents = load_contents(
        sources,
        folder,
        models=[shown_model(source, group.model, cfg) for group in groups for source in group.sources],
        corpora=[described_corpus(group) for group in groups],
        version=sae_tools.__version__,
        created=build_date(),
        chunk=cfg.chunk,
        sharded=sharded,
    )
    return write_report(contents, target, progress)


def shown_model(source: Source, model: LanguageModel, cfg: ReportConfig) -> ModelShown:
    """The model as the run wrote it down, or as it was loaded where that is another or there is no run; its card."""
    written = (source.config.provenance or {}).get("model") if source.config is not None else None
    facts = written if cfg.model is None else None
    return ModelShown(facts or loaded_model(model), model_card(model.folder))


UNTRAINED = ("heldout", "split", "subset", "text_column", "token_column")
"""Settings of a text that decide, beside its source, which part of it is held out."""


def held_out(group: Group) -> bool:
    """Whether all of the group's dictionaries are known not to have been trained on the text that is read: their runs
    held the same part of it out. Of an SAE of others, or with another text than the run's, nobody knows."""

    def part(data: DataConfig) -> list[Any]:
        names = [data.source] if isinstance(data.source, str) else data.source
        return [[Path(name).name for name in names], *(getattr(data, key) for key in UNTRAINED)]

    configs = [source.config for source in group.sources]
    return all(config is not None and part(config.data) == part(group.data) for config in configs)


def described_corpus(group: Group) -> dict[str, Any]:
    """`model` and `source` in words: as the runs' configurations name them, otherwise of local ones only the name; and
    `held_out`."""
    configs = [source.config for source in group.sources if source.config is not None]
    known = {config.model.name for config in configs}
    for config in configs:
        known.update([config.data.source] if isinstance(config.data.source, str) else config.data.source)

    def named(place: str) -> str:
        return place if place in known or not Path(place).exists() else Path(place).name

    sources = [group.data.source] if isinstance(group.data.source, str) else group.data.source
    return {
        "model": title(named(group.model.name), group.model.shuffle_weights),
        "source": ", ".join(map(named, sources)),
        "held_out": held_out(group),
    }


def loaded_model(model: LanguageModel) -> dict[str, Any]:
    """As `LanguageModel.describe`, without what takes long; of a folder only its name, not where it is."""
    return {
        "name": model.folder.name if model.kind == "folder" and model.folder is not None else model.name,
        **({} if model.shuffle_weights is None else {"shuffle_weights": model.shuffle_weights}),
        "architecture": model.architecture,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "d_mlp": model.d_mlp,
        "d_vocab": model.d_vocab,
        "n_ctx": model.n_ctx,
        "parameters": parameter_count(model.bridge),
    }


def choose_output(output: str | Path | None, run: Path | None, sharded: bool) -> Path:
    """Where the report goes: a file, or a folder if sharded. UserError if that would replace what is no report."""
    if output is None:
        target = (run or Path()) / ("report" if sharded else "report.html")
        if target.exists() and not (replaceable(target) if sharded else is_report(target) and target.is_file()):
            raise UserError(f"{target} is there and is not a report of sae_tools; name another place with -o.")
        return target
    target = Path(output)
    if sharded and target.suffix == ".html":
        raise UserError(
            f"-o {target}: so many features make a folder of shards, so name a folder, or set shard_above higher."
        )
    if sharded and target.exists() and not replaceable(target):
        raise UserError(f"{target} is there and is {NOT_REPLACED}; name another folder with -o.")
    if not sharded and target.is_dir():
        raise UserError(f"-o {target} is a folder; name a file, such as {target / 'report.html'}.")
    return target


def features_folder(run: Path | None, target: Path) -> Path:
    """Where what is measured is kept: in the run, or beside the report where there is none that can be written to."""
    if run is not None:
        try:
            must_be_writable(run / "analysis" / "features")
            return run / "analysis" / "features"
        except UserError:
            pass
    folder = target.with_name(f"{target.stem}.analysis") / "features"
    must_be_writable(folder)
    return folder


def must_be_writable(folder: Path) -> None:
    """Make the folder if it is missing. UserError, before anything is measured, if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}).") from None
