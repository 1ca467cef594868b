"""k-sparse probing: how well the k best features of a dictionary tell what the text says about its tokens.

For each task (analysis/labels.py) documents are split into train and test. The k features are those with the largest
standardised difference of means between the classes on train tokens, |mean(f | yes) - mean(f | no)| / std(f) (the
difference of means selects in Gurnee et al., arXiv 2305.01610, and in SAEBench; divided by the deviation it is, for one
feature, the correlation with the label and so does not depend on the feature's unit). A logistic regression on them is
judged on test tokens. Beside it:

- `coordinates`: the same with the k best coordinates of the site, which are what there is without a dictionary;
- `random`: k random features among those that fire on train tokens, mean of `DRAWS` draws;
- `dense`: a probe on all coordinates of the site, which bounds what can be read there linearly;
- `majority`: the accuracy of always saying the more frequent class, on the test tokens as they come; its balanced
  accuracy and AUC are 0.5.

As a case study says (Kantamneni et al., arXiv 2502.16681), features seldom beat a dense probe: the question is how
little of a dictionary suffices, against coordinates and chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from torch import Tensor

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.evaluation_pass import contexts_at_a_time
from sae_tools.analysis.labels import Labels
from sae_tools.analysis.labels_python import UNKNOWN
from sae_tools.analysis.logistic import Separation, fit_probe, separation
from sae_tools.analysis.subject import ENTRIES, Subject
from sae_tools.config_eval import ProbingConfig
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.intervene import capture_with_prefix
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import resolve_site
from sae_tools.seeds import numpy_generator

DRAWS = 5
"""Random sets of features that `random` is the mean of."""
ENOUGH = 30
"""Tokens of each class, in train and in test, below which a task is left out."""


@dataclass(frozen=True)
class Examples:
    """Of one task: places among the probed tokens, in random order and at most so many of each class."""

    train: np.ndarray
    test: np.ndarray
    share: float
    """Of positives among the test tokens as they come."""


@dataclass(frozen=True)
class Read:
    """What was read at the probed tokens."""

    features: dict[str, sparse.csc_matrix]
    """By the dictionary's name, [tokens, d_sae]."""
    sites: dict[str, Float[np.ndarray, "tokens d"]]
    """By the site's name."""


def probe(
    model: LanguageModel,
    subjects: list[Subject],
    corpus: Corpus,
    labels: Labels,
    cfg: ProbingConfig,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """By dictionary: `tasks`, each with its figures and the tokens they stand on, and their `mean`; JSON-able.

    labels: of this corpus. progress: called with the probes done and their total. Two-site dictionaries are probed
    where they read.
    """
    where = corpus.kept.numpy() & labels.found
    train = train_documents(corpus, where, seed)
    document = corpus.document.numpy()[where]
    in_train = np.isin(document, train)
    tasks = {
        name: examples(values[where], in_train, cfg.per_class, seed, name) for name, values in labels.tasks.items()
    }
    known = {name: found for name, found in tasks.items() if found is not None}
    read = read_tokens(model, subjects, corpus, where)
    places = list(dict.fromkeys(subject.site.name for subject in subjects))
    total = len(known) * (len(subjects) + len(places))
    done = 0
    out: dict[str, dict[str, Any]] = {
        s.name: {
            "labels": labels.kind,
            "tokens": {"train": int(in_train.sum()), "test": int((~in_train).sum())},
            "documents": {"train": len(train), "test": len(set(document[~in_train].tolist()))},
            "left_out": sorted(set(tasks) - set(known)),
            "tasks": {},
        }
        for s in subjects
    }
    for task, found in known.items():
        yes = labels.tasks[task][where] == 1
        at_site: dict[str, dict[str, Any]] = {}
        for site in places:
            x = read.sites[site]
            best = k_best(sparse.csc_matrix(x[found.train]), yes[found.train], max(cfg.k))
            at_site[site] = {
                "dense": judged(x, yes, found),
                "coordinates": {k: judged(x[:, best[:k]], yes, found) for k in cfg.k},
            }
            progress(done := done + 1, total)
        for subject in subjects:
            f = read.features[subject.name]
            random = numpy_generator(seed, "random features", subject.name, task)
            shown = {
                "train": counts(yes[found.train]),
                "test": counts(yes[found.test]),
                "majority": max(found.share, 1 - found.share),
                "dense": at_site[subject.site.name]["dense"]._asdict(),
            }
            on_features = probes_on_features(f, yes, found, cfg.k, random)
            for k in cfg.k:
                coordinates = at_site[subject.site.name]["coordinates"][k]._asdict()
                shown[f"k={k}"] = {**on_features[k], "coordinates": coordinates}
            out[subject.name]["tasks"][task] = shown
            progress(done := done + 1, total)
    for entry in out.values():
        entry["mean"] = means(entry["tasks"], cfg.k)
    return out


def why_none(about: dict[str, Any]) -> str:
    """Of an entry without tasks: a clause that says what a label needs, and what there was."""
    tokens, documents = about["tokens"], about["documents"]
    return (
        f"none of {len(about['left_out'])} labels has {ENOUGH} tokens with it and {ENOUGH} without it both in the "
        f"documents that probes are fitted on ({documents['train']:,}, {tokens['train']:,} tokens) and in the others "
        f"({documents['test']:,}, {tokens['test']:,} tokens)"
    )


def counts(yes: Bool[np.ndarray, " rows"]) -> dict[str, int]:
    return {"yes": int(yes.sum()), "no": int((~yes).sum())}


def train_documents(corpus: Corpus, where: np.ndarray, seed: int) -> list[int]:
    """Documents that together have about half of the tokens at `where`, in a random order."""
    numbers, sizes = np.unique(corpus.document.numpy()[where], return_counts=True)
    order = numpy_generator(seed, "train documents").permutation(len(numbers))
    before = np.cumsum(sizes[order]) - sizes[order]
    return sorted(numbers[order][before < sizes.sum() / 2].tolist())


def examples(
    label: np.ndarray, in_train: Bool[np.ndarray, " tokens"], per_class: int, seed: int, task: str
) -> Examples | None:
    """None where a class has too few tokens on either side."""
    random = numpy_generator(seed, "probed tokens", task)
    chosen = []
    for side in (in_train, ~in_train):
        parts = []
        for value in (1, 0):
            places = np.flatnonzero(side & (label == value))
            if len(places) < ENOUGH:
                return None
            parts.append(random.permutation(places)[:per_class])
        chosen.append(random.permutation(np.concatenate(parts)))
    test = label[~in_train & (label != UNKNOWN)]
    return Examples(chosen[0], chosen[1], float((test == 1).mean()))


def k_best(x: sparse.csc_matrix, yes: Bool[np.ndarray, " rows"], k: int) -> np.ndarray:
    """The columns with the largest standardised difference of means, best first; columns without variance last."""
    n, square = len(yes), x.multiply(x)
    mean = np.asarray(x.mean(0)).ravel()
    variance = np.maximum(np.asarray(square.mean(0)).ravel() - mean**2, 0)
    positive = np.asarray(x.T @ yes.astype(x.dtype)).ravel() / yes.sum()
    negative = (mean * n - positive * yes.sum()) / (n - yes.sum())
    safe = np.where(variance > 1e-12, variance, np.inf)
    return np.argsort(-np.abs(positive - negative) / np.sqrt(safe), kind="stable")[:k]


def judged(x: Float[np.ndarray, "tokens d"], yes: Bool[np.ndarray, " tokens"], found: Examples) -> Separation:
    """A probe fitted to the train tokens, on the test tokens."""
    fitted = fit_probe(x[found.train], yes[found.train])
    return separation(fitted(x[found.test]), yes[found.test])


def probes_on_features(
    f: sparse.csc_matrix,
    yes: Bool[np.ndarray, " tokens"],
    found: Examples,
    ks: Iterable[int],
    random: np.random.Generator,
) -> dict[int, dict[str, Any]]:
    """By k: the figures of the best features, which they are, and the figures of `random` ones."""
    train = f[found.train]
    best = k_best(train, yes[found.train], max(ks))
    alive = np.flatnonzero(np.diff(sparse.csc_matrix(train).indptr))
    out = {}
    for k in ks:
        drawn = []
        for _ in range(DRAWS if len(alive) else 0):
            columns = random.permutation(alive)[:k]
            drawn.append(judged(f[:, columns].toarray(), yes, found))
        mean = Separation(*np.mean(drawn, axis=0).tolist()) if drawn else Separation(0.5, 0.5)
        mine = judged(f[:, best[:k]].toarray(), yes, found)
        out[k] = {**mine._asdict(), "features": best[:k].tolist(), "random": mean._asdict()}
    return out


def means(tasks: dict[str, dict[str, Any]], ks: Iterable[int]) -> dict[str, Any]:
    """Of both figures over all tasks."""

    def of(values: list[dict[str, float]]) -> dict[str, float]:
        return {key: float(np.mean([value[key] for value in values])) for key in Separation._fields}

    if not tasks:
        return {}
    out: dict[str, Any] = {"dense": of([task["dense"] for task in tasks.values()])}
    for k in ks:
        found = [task[f"k={k}"] for task in tasks.values()]
        out[f"k={k}"] = of(found) | {kind: of([one[kind] for one in found]) for kind in ("random", "coordinates")}
    return out


@torch.no_grad()
def read_tokens(model: LanguageModel, subjects: list[Subject], corpus: Corpus, where: np.ndarray) -> Read:
    """Activations of all features and at all sites, at the tokens of `where` in order. Features are kept sparse."""
    sites = {subject.site.name: subject.site for subject in subjects}
    final = resolve_site(model, f"resid_post@{model.n_layers - 1}")
    needs_scale = any(subject.space.ln == "token" for subject in subjects)
    wanted = [*sites.values(), *([final] if needs_scale else [])]
    norm = FinalNorm.of(model) if needs_scale else None
    at_sites: dict[str, list[np.ndarray]] = {name: [] for name in sites}
    features: dict[str, list[sparse.csr_matrix]] = {subject.name: [] for subject in subjects}
    size = contexts_at_a_time(model, corpus.length)
    for start, contexts in zip(range(0, corpus.contexts, size), corpus.batches(size), strict=True):
        chosen = torch.from_numpy(where[start : start + size]).to(model.device)
        tokens = contexts.tokens.to(model.device)
        activations, _ = capture_with_prefix(model, tokens, wanted)
        position = torch.arange(corpus.length, device=tokens.device).expand_as(tokens)[chosen]
        scale = None if norm is None else norm.scale(activations[final.name][chosen]).squeeze(-1)
        for name in sites:
            at_sites[name].append(activations[name][chosen].float().cpu().numpy())
        for subject in subjects:
            x = activations[subject.site.name][chosen].float()
            features[subject.name].append(sparse_codes(subject, x, scale, position))
    return Read(
        {name: sparse.csc_matrix(sparse.vstack(parts)) for name, parts in features.items()},
        {name: np.concatenate(parts) for name, parts in at_sites.items()},
    )


def sparse_codes(
    subject: Subject, x: Float[Tensor, "rows d_site"], scale: Tensor | None, position: Tensor
) -> sparse.csr_matrix:
    """Feature activations, float32; dense ones exist for a few rows at a time only."""
    dictionary = subject.dictionary
    device = dictionary.b_dec.device
    scale = None if scale is None else scale.to(device)
    z = subject.space.forward(x.to(device), scale=scale, position=position.to(device))
    parts = []
    for part in z.split(max(1, ENTRIES // dictionary.d_sae)):
        f = dictionary.encode(part)
        row, column = f.nonzero(as_tuple=True)
        entries = f[row, column].float().cpu().numpy()
        parts.append(sparse.csr_matrix((entries, (row.cpu().numpy(), column.cpu().numpy())), shape=tuple(f.shape)))
    return (
        sparse.csr_matrix(sparse.vstack(parts)) if parts else sparse.csr_matrix((0, dictionary.d_sae), dtype=np.float32)
    )
