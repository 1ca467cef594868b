"""Probes on planted features, and the logistic regression and its figures against other ways to compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import check_grad, minimize

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.labels import Labels
from sae_tools.analysis.logistic import RIDGE, fit_probe, separation
from sae_tools.analysis.probing import examples, k_best, probe, read_tokens, train_documents
from sae_tools.config_eval import ProbingConfig
from sae_tools.dictionaries import ReLUDictionary
from tests.analysis.subjects import LENGTH, codes, tiny, tiny_corpus, tiny_subject


def problem(seed: int, rows: int = 120, d: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, d)) * np.array([1, 10, 0.1, 3])[:d] + 5
    yes = (x - x.mean(0)) @ np.array([0.7, -0.05, 4, 0])[:d] + random.normal(size=rows) > 0.5
    return x, yes


def objective(parameters: np.ndarray, x: np.ndarray, yes: np.ndarray) -> float:
    """The same loss, written another way: a mean over positives and one over negatives."""
    z = (x - x.mean(0)) / x.std(0) @ parameters[:-1] + parameters[-1]
    losses = -0.5 * np.log(1 / (1 + np.exp(-z[yes]))).mean() - 0.5 * np.log(1 / (1 + np.exp(z[~yes]))).mean()
    return losses + 0.5 * RIDGE * (parameters[:-1] ** 2).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fit_is_the_minimum(seed: int):
    """Against a method that uses no gradients."""
    x, yes = problem(seed)
    found = fit_probe(x, yes)
    mine = np.append(found.weights, found.bias)
    best = minimize(objective, np.zeros(5), args=(x, yes), method="Powell", options={"xtol": 1e-8, "ftol": 1e-12})
    assert objective(mine, x, yes) <= best.fun + 1e-7
    assert mine == pytest.approx(best.x, abs=2e-3)
    score = (x - x.mean(0)) / x.std(0) @ found.weights + found.bias
    assert found(x) == pytest.approx(score)


def test_neither_units_nor_the_share_of_positives_matter():
    x, yes = problem(3)
    scaled = fit_probe(1000 * x + 7, yes)
    assert scaled.weights == pytest.approx(fit_probe(x, yes).weights, abs=1e-3)
    more = np.concatenate([x, x[yes], x[yes]]), np.concatenate([yes, yes[yes], yes[yes]])
    plain, weighted = fit_probe(x - x.mean(0), yes), fit_probe(more[0] - x.mean(0), more[1])
    raw = [probe.weights / probe.spread for probe in (plain, weighted)]
    assert raw[0] / np.linalg.norm(raw[0]) == pytest.approx(raw[1] / np.linalg.norm(raw[1]), abs=0.05)


def test_a_constant_column_and_one_class():
    x, yes = problem(4)
    x[:, 2] = 3.0
    assert np.isfinite(fit_probe(x, yes)(x)).all()
    with pytest.raises(ValueError, match="both classes"):
        fit_probe(x, np.ones(len(x), bool))


@given(
    scores=st.lists(st.integers(-3, 3), min_size=2, max_size=30),
    flags=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_separation_counts_pairs(scores: list[int], flags: list[bool]):
    score, yes = np.array(scores, float), np.array(flags[: len(scores)])
    if yes.all() or not yes.any():
        with pytest.raises(ValueError, match="both classes"):
            separation(score, yes)
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in score[yes] for b in score[~yes]]
    found = separation(score, yes)
    assert found.auc == pytest.approx(np.mean(pairs))
    assert found.balanced_accuracy == pytest.approx(0.5 * ((score[yes] > 0).mean() + (score[~yes] <= 0).mean()))


@given(seed=st.integers(0, 200))
def test_the_best_feature_is_the_most_correlated_one(seed: int):
    random = np.random.default_rng(seed)
    x = random.normal(size=(60, 8)) * (random.random((60, 8)) < 0.4) * 10.0 ** random.integers(-2, 3, 8)
    x[:, 5] = 0
    yes = random.random(60) < 0.3
    yes[:2] = True, False
    order = k_best(sparse.csc_matrix(x), yes, 8)
    with np.errstate(all="ignore"):
        r = np.abs([np.corrcoef(x[:, i], yes)[0, 1] for i in range(8)])
    assert np.nan_to_num(r)[order].tolist() == pytest.approx(sorted(np.nan_to_num(r), reverse=True))


def test_documents_are_split_by_tokens_and_stay_whole():
    corpus = tiny_corpus(tiny(), contexts=8)
    document = torch.arange(8, dtype=torch.int32).repeat_interleave(LENGTH).view(8, LENGTH)
    corpus = Corpus(corpus.tokens, corpus.kept, document, corpus.counted)
    found = train_documents(corpus, corpus.kept.numpy(), seed=0)
    assert found == train_documents(corpus, corpus.kept.numpy(), seed=0) and len(found) == 4
    assert any(found != train_documents(corpus, corpus.kept.numpy(), seed=seed) for seed in range(1, 5))


def test_examples_hold_no_more_of_a_class_than_asked_and_never_mix_sides():
    random = np.random.default_rng(0)
    label = (random.random(2000) < 0.2).astype(np.uint8)
    label[:100] = 255
    in_train = random.random(2000) < 0.5
    found = examples(label, in_train, 60, 0, "task")
    assert found is not None
    for places, side in ((found.train, in_train), (found.test, ~in_train)):
        assert side[places].all() and len(set(places.tolist())) == len(places) == 120
        assert (label[places] == 1).sum() == (label[places] == 0).sum() == 60
    test = label[~in_train]
    assert found.share == pytest.approx((test == 1).sum() / (test != 255).sum())
    assert examples(label, np.zeros(2000, bool), 60, 0, "task") is None


def test_features_are_read_as_the_dictionary_gives_them():
    model = tiny()
    corpus = tiny_corpus(model, contexts=5)
    subject = tiny_subject(model, "mlp_out@1", "resid_update", relu=True)
    where = corpus.kept.numpy()
    read = read_tokens(model, [subject], corpus, where)
    expected = codes(model, subject, corpus)[corpus.kept].numpy()
    assert read.features["sae"].toarray() == pytest.approx(expected, abs=1e-5)
    assert read.sites["mlp_out@1"].shape == (int(where.sum()), 32)


def test_a_planted_feature_is_found_and_chance_is_chance():
    """One feature fires where the label is 1, and noise has nothing to do with it."""
    model = tiny()
    corpus = tiny_corpus(model, contexts=60)
    document = torch.arange(60, dtype=torch.int32).repeat_interleave(LENGTH).view(60, LENGTH)
    corpus = Corpus(corpus.tokens, corpus.kept, document, corpus.counted)
    base = tiny_subject(model, "resid_post@0", "resid", d_sae=30)
    assert isinstance(base.dictionary.d_sae, int)
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(30, 32, generator=g), torch.randn(30, generator=g), torch.randn(30, 32, generator=g)
    dictionary = ReLUDictionary(*weights, torch.zeros(32)).requires_grad_(False)
    subject = type(base)("planted", base.site, base.space, dictionary)
    f = codes(model, subject, corpus)
    labels = {
        "planted": (f[..., 7] > f[..., 7].median()).numpy().astype(np.uint8),
        "noise": (torch.rand(60, LENGTH, generator=g) < 0.4).numpy().astype(np.uint8),
        "rare": (torch.arange(60 * LENGTH).view(60, LENGTH) < 20).numpy().astype(np.uint8),
    }
    given_labels = Labels("prose", labels, np.ones((60, LENGTH), bool))
    ticks: list[tuple[int, int]] = []
    cfg = ProbingConfig(k=[1, 4])
    found = probe(model, [subject], corpus, given_labels, cfg, 0, lambda *tick: ticks.append(tick))["planted"]
    planted, noise = found["tasks"]["planted"], found["tasks"]["noise"]
    assert planted["k=1"]["features"] == [7] and planted["k=1"]["auc"] > 0.999
    assert planted["k=1"]["balanced_accuracy"] > 0.9 > planted["k=1"]["random"]["auc"]
    assert all(abs(figure["auc"] - 0.5) < 0.08 for figure in (noise["k=1"], noise["k=4"], noise["dense"]))
    assert found["left_out"] == ["rare"] and ticks[-1] == (4, 4)
    assert found["tokens"]["train"] + found["tokens"]["test"] == corpus.counted
    assert found["documents"]["train"] + found["documents"]["test"] == 60
    assert found["mean"]["k=1"]["auc"] == pytest.approx((planted["k=1"]["auc"] + noise["k=1"]["auc"]) / 2)
    again = probe(model, [subject], corpus, given_labels, cfg, 0)["planted"]
    assert again == found


def test_the_gradient_is_that_of_the_objective(monkeypatch):
    """What the solver is given, by finite differences."""
    x, yes = problem(5)
    seen: list = []
    monkeypatch.setattr(
        "sae_tools.analysis.logistic.minimize", lambda f, start, **_: seen.append(f) or type("R", (), {"x": start})()
    )
    fit_probe(x, yes)
    (both,) = seen
    point = np.array([0.3, -0.2, 0.5, 0.1, 0.4])
    assert check_grad(lambda p: both(p)[0], lambda p: both(p)[1], point) < 1e-6
    assert both(point)[0] == pytest.approx(objective(point, x, yes))
