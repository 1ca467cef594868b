"""Everything that a feature report shows of its dictionaries' features, measured on one reading of a corpus each.

    text → corpus-<k> → one pass → sparse activations → examples, correlations ┐
                                   dictionaries → logit weights, geometry      ├→ <id>.safetensors
                                   examples → effects of ablation              ┘

Each stage leaves a file in a working folder, which is removed when the feature files are there; a stage whose file is
there and was made from the same dictionary, model, text and settings is not done again. So a measurement that was
killed goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_tools.analysis.cooccurrence import correlate
from sae_tools.analysis.corpus import Corpus, corpus_settings, read_corpus
from sae_tools.analysis.directions import residual_directions, unit_norms
from sae_tools.analysis.effects import ablation_effects
from sae_tools.analysis.examples import Examples, measure_examples
from sae_tools.analysis.feature_files import FORMAT, FeatureFile, save_features
from sae_tools.analysis.fingerprints import architecture, digest, subject_fingerprint
from sae_tools.analysis.firings import Firings, Reading, write_firings
from sae_tools.analysis.geometry import geometry
from sae_tools.analysis.logit_weights import logit_weights
from sae_tools.analysis.matches import correlation_tensors
from sae_tools.analysis.sources import Group, Source
from sae_tools.analysis.subject import Subject
from sae_tools.analysis.vocabulary import vocabulary
from sae_tools.config_report import ReportConfig
from sae_tools.errors import UserError
from sae_tools.models.parameters import weights_fingerprint
from sae_tools.runs import atomic
from sae_tools.runs.lock import locked
from sae_tools.runs.tensors import load_tensors, save_tensors

Progress = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done and how much there is. Stages, in order: `reading text` and `activations`
(tokens), `contexts` (features), `correlations` (products of blocks), `logit weights` and `geometry` (features),
`effects` (contexts of the corpus). They come once for each group, all its dictionaries together."""

MEASURED_BY = (
    "tokens", "seed", "top", "intervals", "per_interval", "before", "after", "effect_contexts", "neighbours", "matches",
    "logits",
)  # fmt: skip
"""The settings on which the numbers depend."""
UNIT = "own space, decoder row of norm 1"


def measure_features(
    groups: list[Group],
    cfg: ReportConfig,
    folder: Path,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Write `<id>.safetensors` of every source, and `corpus-<k>.safetensors` and `vocabulary-<k>.json` of every group.

    Files that are there and were made from the same things stay as they are; damaged ones are made again. Raises
    UserError where there is no text or no space left, or where another process is writing to the folder.
    """
    ids = [source.id for group in groups for source in group.sources]
    for k in range(len(groups)):
        if f"corpus-{k}" in ids:
            raise UserError(f"A dictionary called corpus-{k} cannot be shown: that is the name of the corpus's file.")
    with locked(folder):
        atomic.remove_leftovers(folder)
        for k, group in enumerate(groups):
            Measurement(k, group, cfg, folder, progress).run()


@dataclass
class Measurement:
    """Of one group."""

    k: int
    group: Group
    cfg: ReportConfig
    folder: Path
    progress: Progress

    def __post_init__(self) -> None:
        group, cfg = self.group, self.cfg
        settings = corpus_settings(group.model, group.data, group.rows, cfg.tokens)
        model = {"weights": weights_fingerprint(group.model.bridge), "settings": group.model.settings()}
        self.corpus_print = digest({"corpus": settings, "model": model})
        subjects = {source.id: subject_fingerprint(source.subject) for source in group.sources}
        self.reading_prints = {
            id: digest({"subject": own, "corpus": self.corpus_print}) for id, own in subjects.items()
        }
        self.settings = {key: getattr(cfg, key) for key in MEASURED_BY}
        self.prints = {
            source.id: digest(
                {
                    "format": FORMAT,
                    "settings": self.settings,
                    "corpus": [self.k, self.corpus_print],
                    "own": [source.id, subjects[source.id], source.tokens],
                    "others": [[id, own] for id, own in subjects.items() if id != source.id],
                }
            )
            for source in group.sources
        }
        self.features = sum(source.subject.dictionary.d_sae for source in group.sources)

    @property
    def work(self) -> Path:
        return self.folder / f"work-{self.k}"

    @property
    def corpus_file(self) -> Path:
        return self.folder / f"corpus-{self.k}.safetensors"

    def file(self, source: Source) -> Path:
        return self.folder / f"{source.id}.safetensors"

    def run(self) -> None:
        self.write_vocabulary()
        corpus = self.saved_corpus()
        if corpus is None or corpus.mean_inverse_scale is None or not all(map(self.finished, self.group.sources)):
            self.measure(self.read() if corpus is None else corpus)
        if self.work.exists():
            atomic.remove_folder(self.work)

    def measure(self, corpus: Corpus) -> None:
        """Every stage in turn. The files of the features come last, so that all of the parts can be made again."""
        self.work.mkdir(exist_ok=True)
        firings, scale = self.activations(corpus)
        if corpus.mean_inverse_scale != scale:
            corpus = replace(corpus, mean_inverse_scale=scale)
            corpus.save(self.corpus_file, self.corpus_print)
        examples = self.examples(firings, corpus)
        correlations = self.correlations(firings, corpus)
        logits, weights = self.weights(scale)
        effects = self.effects(corpus, examples)
        for i, source in enumerate(self.group.sources):
            if self.finished(source):
                continue
            arrays = examples[i].tensors() | correlations[i] | logits[i] | weights[i] | effects[i]
            del arrays["lead_value"]
            save_features(self.file(source), arrays, self.meta(source, corpus))

    # --------------------------------------------------------------------------------------------------- what is there

    def finished(self, source: Source) -> bool:
        try:
            return FeatureFile.load(self.file(source)).meta["fingerprint"] == self.prints[source.id]
        except UserError:
            return False

    def saved_corpus(self) -> Corpus | None:
        try:
            corpus, fingerprint = Corpus.load(self.corpus_file)
        except UserError:
            return None
        return corpus if fingerprint == self.corpus_print else None

    def part(self, source: Source, stage: str) -> dict[str, Tensor] | None:
        """What a stage left for a source; None where it has to be done."""
        try:
            tensors, meta = load_tensors(self.part_file(source, stage))
        except UserError:
            return None
        return tensors if meta.get("fingerprint") == self.prints[source.id] else None

    def save_part(self, source: Source, stage: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        save_tensors(self.part_file(source, stage), tensors, {"fingerprint": self.prints[source.id]})
        return tensors

    def part_file(self, source: Source, stage: str) -> Path:
        return self.work / f"{source.id}.{stage}.safetensors"

    # --------------------------------------------------------------------------------------------------------- stages

    def write_vocabulary(self) -> None:
        model, path = self.group.model, self.folder / f"vocabulary-{self.k}.json"
        content = {"tokens": vocabulary(model.tokenizer, model.d_vocab), "special": list(model.special_token_ids)}
        try:
            if atomic.read_json(path) == content:
                return
        except UserError:
            pass
        atomic.write_json(path, content)

    def read(self) -> Corpus:
        group, wanted = self.group, self.cfg.tokens
        self.progress("reading text", 0, wanted)
        corpus = read_corpus(
            group.model,
            group.data,
            group.rows,
            wanted,
            lambda counted: self.progress("reading text", min(counted, wanted), wanted),
        )
        corpus.save(self.corpus_file, self.corpus_print)
        return corpus

    def activations(self, corpus: Corpus) -> tuple[list[Firings], float]:
        readings = [
            Reading(source.id, source.subject, unit_norms(source.subject.dictionary), self.reading_prints[source.id])
            for source in self.group.sources
        ]

        def progress(counted: int) -> None:
            self.progress("activations", counted, corpus.counted)

        progress(0)
        return write_firings(self.group.model, readings, corpus, self.group.rows, self.work, progress)

    def examples(self, firings: list[Firings], corpus: Corpus) -> list[Examples]:
        def make(i: int, source: Source, progress: Callable[[int], None]) -> dict[str, Tensor]:
            return measure_examples(firings[i], corpus.length, self.cfg, progress).tensors()

        return [Examples(**tensors) for tensors in self.by_source("examples", "contexts", make)]

    def correlations(self, firings: list[Firings], corpus: Corpus) -> list[dict[str, Tensor]]:
        """Those of all dictionaries come from the same products, so they are done together or not at all."""
        sources = self.group.sources
        found = [self.part(source, "correlations") for source in sources]
        if None in found:
            results = correlate(
                firings,
                corpus.tokens.numel(),
                corpus.counted,
                self.cfg.neighbours,
                self.cfg.matches,
                self.cfg.threads,
                lambda done, total: self.progress("correlations", done, total),
            )
            directions = [
                residual_directions(source.subject, self.group.model, corpus.mean_inverse_scale) for source in sources
            ]
            for i, source in enumerate(sources):
                if found[i] is None:
                    tensors = correlation_tensors(results, directions, i, self.cfg.matches)
                    found[i] = self.save_part(source, "correlations", tensors)
        return [tensors for tensors in found if tensors is not None]

    def weights(self, mean_inverse_scale: float) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        """(logit weights, geometry) of each source."""

        def logits(i: int, source: Source, progress: Callable[[int], None]) -> dict[str, Tensor]:
            return logit_weights(
                source.subject, self.group.model, mean_inverse_scale, self.cfg, lambda done, total: progress(done)
            )

        def lengths(i: int, source: Source, progress: Callable[[int], None]) -> dict[str, Tensor]:
            two_sites = source.subject.target_space is not None
            return geometry(
                source.subject.dictionary, self.cfg, lambda done, total: progress(done), two_sites=two_sites
            )

        return self.by_source("logits", "logit weights", logits), self.by_source("geometry", "geometry", lengths)

    def effects(self, corpus: Corpus, examples: list[Examples]) -> list[dict[str, Tensor]]:
        """Those of all dictionaries come from the same passes of the model, so they are done together or not at all."""
        sources = self.group.sources
        found = [self.part(source, "effects") for source in sources]
        if None in found:
            self.progress("effects", 0, corpus.contexts)
            results = ablation_effects(
                self.group.model,
                [source.subject for source in sources],
                corpus,
                examples,
                self.group.rows,
                self.cfg,
                lambda done, total: self.progress("effects", done, total),
            )
            for i, source in enumerate(sources):
                if found[i] is None:
                    found[i] = self.save_part(source, "effects", results[i].tensors())
        return [tensors for tensors in found if tensors is not None]

    def by_source(
        self, part: str, stage: str, make: Callable[[int, Source, Callable[[int], None]], dict[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """A stage that treats one dictionary after another: what `make(i, source, progress in features)` gives."""
        results, before = [], 0
        for i, source in enumerate(self.group.sources):
            tensors = self.part(source, part)
            if tensors is None:
                done = before  # a loop's own value for the function below

                def progress(features: int, done: int = done) -> None:
                    self.progress(stage, done + features, self.features)

                progress(0)
                tensors = self.save_part(source, part, make(i, source, progress))
            results.append(tensors)
            before += source.subject.dictionary.d_sae
        return results

    def meta(self, source: Source, corpus: Corpus) -> dict[str, Any]:
        subject = source.subject
        return {
            **architecture(subject),
            "id": source.id,
            "d_sae": subject.dictionary.d_sae,
            "d_in": subject.dictionary.d_in,
            "site": subject.site.name,
            "space": subject.space.kind,
            **_writes(subject),
            "unit": UNIT,
            "corpus": self.k,
            "tokens": corpus.counted,
            "length": corpus.length,
            "before": self.cfg.before,
            "after": self.cfg.after,
            "intervals": self.cfg.intervals,
            "matches": [other.id for other in self.group.sources if other is not source],
            "training_tokens": source.tokens,
            "settings": self.settings,
            "fingerprint": self.prints[source.id],
        }


def _writes(subject: Subject) -> dict[str, Any]:
    """Where and in which space a two-site dictionary writes, which has entries of its own."""
    if subject.target_space is None:
        return {}
    return {"writes": subject.written_site.name, "target_space": subject.target_space.kind}
