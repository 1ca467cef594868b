"""From run directories and SAEs to evaluation.json: what `sae-eval` does, callable from a notebook.

text → corpus → one pass (evaluation_pass.py) → figures ┐
         └ some of it → controls (controls.py)          ├→ evaluation.json
         └ some of it, labels → probes (probing.py)     ┘
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import sae_tools
from sae_tools.analysis.controls import measure_controls
from sae_tools.analysis.corpus import read_corpus
from sae_tools.analysis.evaluation_pass import contexts_at_a_time, evaluate
from sae_tools.analysis.evaluation_table import DEFINITIONS
from sae_tools.analysis.labels import label_corpus
from sae_tools.analysis.probing import probe, why_none
from sae_tools.analysis.sources import Group, open_sources
from sae_tools.config_eval import EvalConfig
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel
from sae_tools.runs import atomic
from sae_tools.tracking.metrics import finite_or_null

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done and how much there is: `reading text`, `measuring` and `controls`
(tokens), `probing` (probes). They come once for each group of dictionaries that share a corpus."""

FORMAT = 1
NAME = "evaluation.json"


def evaluate_dictionaries(
    paths: str | Path | Sequence[str | Path],
    cfg: EvalConfig | None = None,
    output: str | Path | None = None,
    *,
    model: LanguageModel | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], Path]:
    """Measure dictionaries on held-out text and write what was found; returns (it, the file's path).

    paths: runs of ours (every dictionary at its newest complete checkpoint), or SAEs.
    output: the file, replaced whatever it is; None: `analysis/evaluation.json` in the run, or `evaluation.json` in the
        current directory if `paths` is not one run, where only an evaluation is replaced.
    model: the language model if it is in memory. During the controls its weights are shuffled in place, then put back.
    say: called with a line for each thing that was taken for granted or could not be measured.

    The value: `dictionaries` by id (`SubjectSums.finish`, and under `controls` and `probing` what these files say),
    `corpora`, `settings`, `definitions`. A figure that has no meaning is null. Raises UserError, one sentence, for what
    the user can mend, before anything is measured if possible.
    """
    cfg = cfg or EvalConfig()
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    target = choose_output(output, paths)
    groups = open_sources(paths, cfg, model)
    for line in dict.fromkeys(note for group in groups for source in group.sources for note in source.notes):
        say(line)
    must_be_writable(target)
    found: dict[str, Any] = {
        "format": FORMAT,
        "sae_tools": sae_tools.__version__,
        "settings": cfg.model_dump(mode="json"),
        "definitions": {
            key: text.format(ultra=cfg.ultra_rare_below, dense=cfg.dense_above) for key, text in DEFINITIONS.items()
        },
        "corpora": [],
        "dictionaries": {},
    }
    for number, group in enumerate(groups):
        corpus, entries = evaluate_group(group, cfg, progress, say)
        found["corpora"].append(corpus)
        for source in group.sources:
            about = {"path": str(source.path), "training_tokens": source.tokens, "corpus": number}
            found["dictionaries"][source.id] = {**about, **entries[source.subject.name]}
    found = finite_or_null(found)
    atomic.write_json(target, found)
    return found, target


def evaluate_group(
    group: Group, cfg: EvalConfig, progress: Progress, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(what the corpus is, entries by dictionary)."""
    model, rows = group.model, group.rows
    subjects = [source.subject for source in group.sources]
    progress("reading text", 0, cfg.tokens)
    corpus = read_corpus(model, group.data, rows, cfg.tokens, lambda n: progress("reading text", n, cfg.tokens))
    size = contexts_at_a_time(model, corpus.length)
    progress("measuring", 0, corpus.counted)
    entries = evaluate(
        model,
        subjects,
        lambda: corpus.batches(size),
        rows,
        length=corpus.length,
        seed=cfg.seed,
        ultra_rare_below=cfg.ultra_rare_below,
        dense_above=cfg.dense_above,
        progress=lambda n: progress("measuring", n, corpus.counted),
    )
    if cfg.controls.enabled:
        part = corpus.thinned(cfg.controls.tokens)
        total = 2 * part.counted
        progress("controls", 0, total)
        controls = measure_controls(
            model,
            subjects,
            lambda: part.batches(size),
            rows,
            cfg,
            length=corpus.length,
            progress=lambda n: progress("controls", n, total),
        )
        for name, found in controls.items():
            entries[name]["controls"] = found
    if cfg.probing.enabled:
        part = corpus.thinned(cfg.probing.tokens)
        labels = label_corpus(model, group.data, part, cfg.probing.labels)
        if isinstance(labels, str):
            say(f"No probing: {labels}.")
        else:
            probes = probe(
                model, subjects, part, labels, cfg.probing, cfg.seed, lambda n, of: progress("probing", n, of)
            )
            for name, found in probes.items():
                entries[name]["probing"] = found
            about = next(iter(probes.values()))  # of all dictionaries the same labels
            if not about["tasks"]:
                say(f"No probing: {why_none(about)}; more text may do (tokens=, probing.tokens=).")
    described = {
        "model": model.title,
        "data": group.data.model_dump(mode="json"),
        "rows": rows.model_dump(mode="json"),
        "tokens": corpus.counted,
        "contexts": corpus.contexts,
        "context_length": corpus.length,
        "documents": len(corpus.document.unique()),
        "held_out": cfg.data is None and all(source.config is not None for source in group.sources),
    }
    return described, entries


def choose_output(output: str | Path | None, paths: list[Path]) -> Path:
    """Where the file goes. UserError if it would replace what is no evaluation, or a folder."""
    if output is not None:
        target = Path(output)
        if target.is_dir():
            raise UserError(f"-o {target} is a folder; name a file, such as {target / NAME}.")
        return target
    run = paths[0] if len(paths) == 1 and (paths[0] / "config.yaml").is_file() else None
    target = run / "analysis" / NAME if run is not None else Path(NAME)
    if target.exists() and not is_evaluation(target):
        raise UserError(f"{target} is there and is no evaluation of sae_tools; name another place with -o.")
    return target


def is_evaluation(path: Path) -> bool:
    try:
        return path.is_file() and {"format", "corpora", "dictionaries"} <= atomic.read_json(path).keys()
    except UserError:
        return False


def must_be_writable(target: Path) -> None:
    """Make the folder if it is missing. UserError, before anything is measured, if nothing can be written to it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to {target.parent} ({error.strerror}); name a file with -o.") from None
