"""The whole measurement on a small trained run: against brute force, stopped anywhere, and asked for again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_tools.analysis import features as features_module
from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.directions import unit_norms
from sae_tools.analysis.examples import Examples
from sae_tools.analysis.feature_files import FeatureFile
from sae_tools.analysis.features import Measurement, measure_features
from sae_tools.analysis.fingerprints import architecture, subject_fingerprint
from sae_tools.analysis.firings import Reading, write_firings
from sae_tools.analysis.matches import match_cosines
from sae_tools.analysis.sources import Group, open_sources
from sae_tools.config_report import ReportConfig
from sae_tools.dictionaries.formats.parts import KINDS
from sae_tools.errors import UserError
from sae_tools.models.capture import capture
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.sites import resolve_site
from sae_tools.runs import atomic
from sae_tools.runs.tensors import load_tensors
from sae_tools.training.run import run_job
from tests.analysis.test_cooccurrence import expected_best
from tests.analysis.test_examples import checked_by_loops
from tests.analysis.test_firings import dense_from
from tests.dictionaries.formats.examples import example
from tests.jobs import job_config

CFG = ReportConfig(
    tokens=500, top=3, intervals=4, per_interval=1, before=4, after=3, neighbours=3, matches=2, logits=4,
    effect_contexts=1, threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> Group:
    """Four dictionaries: TopK in three spaces, and ReLU; one feature of the last is dead."""
    run = run_job(job_config(tmp_path_factory.mktemp("job"))).run
    (group,) = open_sources([run.path], CFG)
    with torch.no_grad():
        group.sources[-1].subject.dictionary.b_enc[3] = -1e6
    return group


@pytest.fixture(scope="module")
def whole(group: Group, tmp_path_factory) -> Path:
    """Measured without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    measure_features([group], CFG, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_left(group: Group, whole: Path):
    ids = [source.id for source in group.sources]
    files = {".lock", "corpus-0.safetensors", "vocabulary-0.json", *(f"{id}.safetensors" for id in ids)}
    assert set(contents(whole)) == files
    assert len(atomic.read_json(whole / "vocabulary-0.json")["tokens"]) == group.model.d_vocab
    for source in group.sources:
        meta = FeatureFile.load(whole / f"{source.id}.safetensors").meta
        assert meta["id"] == source.id and meta["matches"] == [id for id in ids if id != source.id]
        assert meta["site"] == source.subject.site.name and meta["corpus"] == 0 and meta["length"] == 32
        assert meta["training_tokens"] == 24 * 128 and meta["architecture"] in ("topk", "relu")


def test_equal_to_brute_force(group: Group, whole: Path, tmp_path: Path):
    """Densities, maxima, histograms, contexts and windows by plain loops, correlations by numpy, on activations that
    the model gives a context at a time."""
    corpus, _ = Corpus.load(whole / "corpus-0.safetensors")
    last = resolve_site(group.model, f"resid_post@{group.model.n_layers - 1}").hook_name
    found = [
        capture(group.model, tokens[None].long(), [last, *(s.subject.site.hook_name for s in group.sources)])
        for tokens in corpus.tokens
    ]
    scales = [FinalNorm.of(group.model).scale(f[last][0]).squeeze(-1) for f in found]
    inverse = [1 / s[kept] for s, kept in zip(scales, corpus.kept, strict=True)]
    assert corpus.mean_inverse_scale == pytest.approx(float(torch.cat(inverse).double().mean()), rel=1e-6)

    readings = [Reading(s.id, s.subject, unit_norms(s.subject.dictionary), "brute") for s in group.sources]
    firings, _ = write_firings(group.model, readings, corpus, group.rows, tmp_path)
    kept = corpus.kept.flatten().numpy()
    dense = [dense_from(own, len(kept)) for own in firings]
    for i, source in enumerate(group.sources):
        subject = source.subject
        expected = []
        for f, scale in zip(found, scales, strict=True):
            z = subject.space.forward(f[subject.site.hook_name][0], scale, torch.arange(corpus.length))
            expected.append(subject.dictionary.encode(z) * subject.dictionary.W_dec.norm(dim=1))
        by_context = torch.cat(expected).detach().numpy() * kept[:, None]
        assert np.allclose(dense[i], by_context, rtol=1e-5, atol=1e-5 * by_context.max())

        arrays = FeatureFile.load(whole / f"{source.id}.safetensors").arrays
        names = [name for name in Examples.__dataclass_fields__ if name != "lead_value"]
        tensors = {name: torch.from_numpy(arrays[name]) for name in names}
        example = Examples(**tensors, lead_value=torch.zeros(len(tensors["example_token"])))
        assert np.allclose(arrays["maximum"], by_context.max(0), rtol=1e-5, atol=1e-5)
        assert np.allclose(arrays["fires"], (by_context > 0).sum(0), atol=1)
        lead = lead_of(example, dense[i], corpus.length)
        checked_by_loops(replace(example, lead_value=lead), dense[i], CFG, corpus.length)

        own = expected_best(dense[i], dense[i], kept, CFG.neighbours, same=True)
        for feature, values in enumerate(own):
            assert np.allclose(arrays["correlated_value"][feature][: len(values)], values, atol=1e-5)
        for d, j in enumerate(j for j in range(len(dense)) if j != i):
            for feature, values in enumerate(expected_best(dense[i], dense[j], kept, CFG.matches, same=False)):
                assert np.allclose(arrays["match_value"][feature, d][: len(values)], values, atol=1e-5)
    assert (FeatureFile.load(whole / "relu.safetensors").arrays["fires"] == 0).any()


def lead_of(examples: Examples, dense: np.ndarray, length: int) -> torch.Tensor:
    """Not in the file: taken from the activations, so that the loops' check of it says nothing."""
    windows = examples.windows(length, CFG.before, CFG.after)
    token = (windows.context * length + windows.first - 1).clamp(min=0)
    there = torch.from_numpy(dense[token.numpy(), examples.feature().numpy()])
    return torch.where(windows.first > 0, there, 0.0)


def test_asked_for_again_nothing_is_done(group: Group, whole: Path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"}
    for stage in ("read_corpus", "write_firings", "measure_examples", "correlate", "ablation_effects"):
        monkeypatch.setattr(features_module, stage, None)
    measure_features([group], CFG, whole)
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize(
    "stage",
    ["reading text", "activations", "contexts", "correlations", "logit weights", "geometry", "effects"],
)
def test_interrupted_at_a_stage_whole_files_are_left_and_it_goes_on(group: Group, whole: Path, tmp_path: Path, stage):
    def stop(name: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if name == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_features([group], CFG, tmp_path, stop)
    assert not [name for name in contents(tmp_path) if atomic.TEMPORARY in name]
    for path in tmp_path.rglob("*.safetensors"):
        load_tensors(path)  # which checks it
    seen: list[str] = []
    measure_features([group], CFG, tmp_path, lambda name, done, total: seen.append(name))
    assert ("reading text" in seen) == (stage == "reading text")
    assert contents(tmp_path) == contents(whole)


def test_killed_after_every_file(group: Group, whole: Path, tmp_path: Path, monkeypatch):
    """Each process writes one file and dies while it writes the second, leaving what it had begun."""

    class Killed(BaseException):
        pass

    real: Callable[..., None] = os.replace
    left = [0]

    def dying(*paths: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(*paths)

    monkeypatch.setattr(os, "replace", dying)
    monkeypatch.setattr(atomic, "_forget", lambda path: None)  # a dead process cleans up nothing
    for _ in range(100):
        left[0] = 1
        try:
            measure_features([group], CFG, tmp_path)
        except Killed:
            continue
        break
    monkeypatch.undo()
    assert not (tmp_path / "work-0").exists()
    atomic.remove_leftovers(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_what_has_changed_is_made_again(group: Group, whole: Path, tmp_path: Path):
    measure_features([group], CFG, tmp_path)
    damaged = tmp_path / "acts.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    (tmp_path / "vocabulary-0.json").write_text("{}")
    measure_features([group], CFG, tmp_path)
    assert contents(tmp_path) == contents(whole)

    (tmp_path / "corpus-0.safetensors").unlink()
    measure_features([group], CFG, tmp_path)
    assert contents(tmp_path) == contents(whole)

    measure_features([group], CFG.model_copy(update={"top": 2}), tmp_path)
    assert (FeatureFile.load(damaged).arrays["example_group"] == 0).sum() < (
        FeatureFile.load(whole / damaged.name).arrays["example_group"] == 0
    ).sum()
    measure_features([group], CFG.model_copy(update={"chunk": 7}), tmp_path)  # of no effect on the numbers
    assert contents(tmp_path) == contents(whole)


def test_another_checkpoint_is_another_subject(group: Group, tmp_path: Path):
    def prints() -> dict[str, str]:
        return Measurement(0, group, CFG, tmp_path, lambda stage, done, total: None).prints

    subject = group.sources[0].subject
    files = prints()
    before = subject_fingerprint(subject)
    assert before == subject_fingerprint(replace(subject, name="another name"))
    assert before != subject_fingerprint(replace(subject, space=replace(subject.space, scale=3.0)))
    with torch.no_grad():
        subject.dictionary.b_enc[0] += 1e-3
        assert before != subject_fingerprint(subject)
        assert all(files[id] != changed for id, changed in prints().items())  # the others' matches change with it
        subject.dictionary.b_enc[0] -= 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_is_called_by_the_name_of_its_architecture(group: Group, kind: str):
    subject = replace(group.sources[0].subject, dictionary=example(kind))
    competes = {"k": 7} if kind in ("topk", "batchtopk", "matryoshka") else {}
    assert architecture(subject) == {"architecture": kind, **competes}


def test_the_same_weights_with_other_settings_are_another_model(group: Group, tmp_path: Path, monkeypatch):
    def prints() -> dict[str, str]:
        return Measurement(0, group, CFG, tmp_path, lambda stage, done, total: None).prints

    config = group.model.bridge.original_model.config
    before = prints()
    monkeypatch.setattr(config, "_name_or_path", "/elsewhere")  # a folder that was moved
    assert prints() == before
    monkeypatch.setattr(config, "layer_norm_epsilon", 1e-3)
    assert not set(prints().values()) & set(before.values())


def test_every_group_has_its_corpus(group: Group, whole: Path, tmp_path: Path):
    rows = group.rows.model_copy(update={"skip_positions": 5})
    source = group.sources[3]
    other = replace(group, rows=rows, sources=[replace(source, id="other")])
    measure_features([replace(group, sources=[source]), other], CFG, tmp_path)
    first, second = (FeatureFile.load(tmp_path / f"{id}.safetensors") for id in (source.id, "other"))
    assert first.meta["corpus"] == 0 and second.meta["corpus"] == 1 and first.meta["matches"] == []
    assert first.arrays["match_feature"].shape == (40, 0, 2)
    assert not Corpus.load(tmp_path / "corpus-1.safetensors")[0].kept[:, :5].any()
    alone = FeatureFile.load(whole / f"{source.id}.safetensors").arrays
    assert all((first.arrays[name] == alone[name]).all() for name in ("fires", "window_value", "correlated_value"))


def test_a_name_that_is_taken(group: Group, tmp_path: Path):
    taken = replace(group, sources=[replace(group.sources[0], id="corpus-0")])
    with pytest.raises(UserError, match="the name of the corpus's file"):
        measure_features([taken], CFG, tmp_path)


def test_cosines_of_matches():
    random = torch.Generator().manual_seed(0)
    own, other = torch.randn(5, 8, generator=random), torch.randn(7, 8, generator=random)
    match = torch.tensor([[0, 6], [3, -1], [2, 2], [-1, -1], [1, 5]], dtype=torch.int32)
    found = match_cosines(own, other, match)
    for i in range(5):
        for j in range(2):
            m = int(match[i, j])
            expected = own[i] @ other[m] / own[i].norm() / other[m].norm() if m >= 0 else torch.tensor(torch.nan)
            assert torch.isclose(found[i, j], expected, equal_nan=True)
    assert match_cosines(None, other, match).isnan().all() and match_cosines(own, None, match).isnan().all()
