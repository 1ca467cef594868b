"""Ablation effects against brute force: the whole model, run on the whole context, through TransformerLens's hooks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.analysis import effects_direct, prediction
from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.effects import Effects, ablation_effects
from sae_tools.analysis.effects_direct import is_direct
from sae_tools.analysis.examples import Examples
from sae_tools.analysis.prediction import Prediction
from sae_tools.analysis.subject import Subject
from sae_tools.config import RowsConfig
from sae_tools.models.intervene import logits_with_edits, replace
from sae_tools.models.load import LanguageModel
from tests.analysis.subjects import (
    LENGTH,
    WINDOW,
    codes,
    read,
    tiny,
    tiny_corpus,
    tiny_examples,
    tiny_subject,
    tiny_transcoder,
)


def logits_without(model: LanguageModel, subject: Subject, corpus: Corpus, context: int, change: Tensor) -> Tensor:
    tokens = corpus.tokens[context : context + 1].long()
    site = subject.written_site
    if site.kind == "resid_mid":  # TransformerLens's hook there changes what the MLP reads only
        x = read(model, corpus, site.name)[0][site.name].view(corpus.contexts, LENGTH, -1)[context]
        return logits_with_edits(model, tokens, [replace(site, x[None] - change)])[0]
    hooks: Any = [(site.hook_name, lambda x, hook: x - change)]
    return model.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)[0]


class BruteForce:
    """Change of the loss of every token of a context without a feature."""

    def __init__(self, model: LanguageModel, subject: Subject, corpus: Corpus):
        self.model, self.subject, self.corpus = model, subject, corpus
        self.f = codes(model, subject, corpus)
        self.scale = read(model, corpus, subject.site.name)[1].view(corpus.contexts, LENGTH)
        self.known: dict[tuple[int, int], Tensor] = {}

    def loss(self, context: int, taken: Tensor) -> Tensor:
        logits = logits_without(self.model, self.subject, self.corpus, context, taken)[:-1].double()
        return torch.nn.functional.cross_entropy(logits, self.corpus.tokens[context, 1:].long(), reduction="none")

    @torch.no_grad()
    def __call__(self, feature: int, context: int) -> Tensor:
        """[length]; 0 for the first token, which nothing predicts."""
        if (feature, context) not in self.known:
            f, position, scale = self.f[context], torch.arange(LENGTH), self.scale[context]
            without = f.clone()
            without[:, feature] = 0
            decode, lift = self.subject.dictionary.decode, self.subject.written.lift
            taken = lift(decode(f), scale, position) - lift(decode(without), scale, position)
            nothing = (-1, context)
            if nothing not in self.known:
                self.known[nothing] = self.loss(context, torch.zeros_like(taken))
            change = self.loss(context, taken) - self.known[nothing]
            self.known[feature, context] = torch.cat([torch.zeros(1), change])
        return self.known[feature, context]


def check(
    model: LanguageModel, subject: Subject, corpus: Corpus, examples: Examples, found: Effects, tolerance: float = 3e-5
) -> None:
    """Every token of every measured example's window; what is left out must be no effect."""
    windows = examples.windows(LENGTH, WINDOW.before, WINDOW.after)
    features = examples.feature()
    brute_force = BruteForce(model, subject, corpus)
    largest = 0.0
    for e in range(len(features)):
        entries = slice(int(found.effect_start[e]), int(found.effect_start[e + 1]))
        if not found.effect_measured[e]:
            assert entries.start == entries.stop
            continue
        first, stop = int(windows.first[e]), int(windows.stop[e])
        got = torch.zeros(stop - first, dtype=torch.float64)
        offset = found.effect_offset[entries].long()
        assert (offset.diff() > 0).all() and (found.effect_value[entries] != 0).all()
        got[offset] = found.effect_value[entries].double()
        expected = brute_force(int(features[e]), int(windows.context[e]))[first:stop]
        assert (got - expected).abs().max() < tolerance * (1 + expected.abs().max()), (e, got, expected)
        largest = max(largest, float(expected.abs().max()))
    assert largest > 0.05, "the ablations do nothing, so the test would not see a mistake"


ROWS = RowsConfig()
CASES = [
    # direct: nothing after the site mixes positions
    ("gpt2", "mlp_acts@2", "mlp_acts", {}),
    ("gpt2", "mlp_out@2", "resid_update", {"centre": "mean"}),
    ("gpt2", "mlp_out@2", "logit_update", {}),
    ("gpt2", "mlp_out@2", "logit_update", {"ln": "token"}),
    ("gpt2", "resid_post@2", "resid", {"rotation": 3}),
    ("llama", "mlp_acts@2", "mlp_acts", {"relu": True}),
    ("llama-tied", "mlp_out@2", "logit_update", {"ln": "token", "relu": True}),
    ("neox-parallel", "mlp_out@2", "resid_update", {}),
    ("neox-parallel", "resid_post@2", "resid", {"relu": True}),
    ("gemma2", "mlp_out@2", "resid_update", {}),
    ("granite", "resid_post@2", "resid", {}),
    # general
    ("gpt2", "attn_out@2", "resid_update", {}),
    ("gpt2", "resid_mid@2", "resid", {}),
    ("gpt2", "resid_pre@0", "resid", {}),
    ("gpt2", "mlp_acts@0", "mlp_acts", {"relu": True}),
    ("gpt2", "mlp_out@1", "logit_update", {"ln": "token"}),
    ("llama", "attn_out@1", "logit_update", {}),
    ("llama", "resid_post@1", "resid", {}),
    ("neox-parallel", "attn_out@2", "resid_update", {}),
    ("neox-parallel", "mlp_out@1", "resid_update", {"relu": True}),
    ("neox-sequential", "resid_pre@1", "resid", {}),
    ("gemma2", "mlp_acts@2", "mlp_acts", {}),
    ("granite", "mlp_out@1", "resid_update", {}),
]


@pytest.mark.parametrize("rows", [ROWS, RowsConfig(skip_positions=0, skip_special=False)], ids=["skip", "all"])
@pytest.mark.parametrize(("kind", "site", "space", "settings"), CASES, ids=str)
def test_every_token_of_every_window(
    kind: str, site: str, space: str, settings: dict[str, Any], rows: RowsConfig
) -> None:
    model = tiny(kind)
    subject = tiny_subject(model, site, space, **settings)
    assert is_direct(model, subject.site) == (CASES.index((kind, site, space, settings)) < 11)
    corpus = tiny_corpus(model, rows)
    examples = tiny_examples(codes(model, subject, corpus), subject)
    seen = []
    cfg = WINDOW.model_copy(update={"effect_contexts": 2})
    found = ablation_effects(model, [subject], corpus, [examples], rows, cfg, lambda *p: seen.append(p))[0]
    assert torch.equal(found.effect_measured, examples.rank() < 2)
    check(model, subject, corpus, examples, found)
    assert seen[-1][0] <= seen[-1][1] and [p[0] for p in seen] == sorted(p[0] for p in seen)


@pytest.mark.parametrize(
    ("kind", "reads", "writes", "space", "settings"),
    [
        ("gpt2", "mlp_in@2", "mlp_out@2", "resid_update", {"centre": "mean"}),
        ("llama", "mlp_acts@2", "mlp_out@2", "logit_update", {"ln": "token"}),
        ("neox-parallel", "resid_pre@0", "resid_post@2", "resid", {}),
        ("gpt2", "mlp_acts@1", "mlp_out@1", "logit_update", {"ln": "token", "rotation": 2}),
        ("llama-tied", "resid_mid@0", "attn_out@1", "resid_update", {}),
        ("gemma2", "mlp_in@1", "mlp_acts@2", "mlp_acts", {}),
    ],
    ids=str,
)
def test_two_sites(kind: str, reads: str, writes: str, space: str, settings: dict[str, Any]) -> None:
    """Features fire on what is read, and are taken away from what is written."""
    model = tiny(kind)
    subject = tiny_transcoder(model, reads, writes, space, **settings)
    corpus = tiny_corpus(model, ROWS)
    examples = tiny_examples(codes(model, subject, corpus), subject)
    cfg = WINDOW.model_copy(update={"effect_contexts": 2})
    check(model, subject, corpus, examples, ablation_effects(model, [subject], corpus, [examples], ROWS, cfg)[0])


def several() -> tuple[LanguageModel, Corpus, list[Subject], list[Examples]]:
    model = tiny("gpt2")
    corpus = tiny_corpus(model)
    subjects = [
        tiny_subject(model, "mlp_acts@2", "mlp_acts", "acts", d_sae=12),
        tiny_subject(model, "mlp_out@1", "resid_update", "early", d_sae=10),
        tiny_subject(model, "mlp_out@2", "logit_update", "token", d_sae=14, ln="token", relu=True),
    ]
    return model, corpus, subjects, [tiny_examples(codes(model, s, corpus), s) for s in subjects]


def test_several_dictionaries_at_once_and_what_is_measured_by_default() -> None:
    model, corpus, subjects, examples = several()
    seen: list[tuple[int, int]] = []
    found = ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW, lambda *p: seen.append(p))
    assert seen[-1] == (2 * corpus.contexts, 2 * corpus.contexts)
    for subject, e, f in zip(subjects, examples, found, strict=True):
        everything = subject.site.layer == 2
        assert torch.equal(
            f.effect_measured, torch.ones_like(e.rank(), dtype=torch.bool) if everything else e.rank() < 1
        )
        check(model, subject, corpus, e, f)
        assert {k: (v.dtype, v.dim()) for k, v in f.tensors().items()} == {
            "effect_measured": (torch.bool, 1),
            "effect_start": (torch.int64, 1),
            "effect_offset": (torch.uint8, 1),
            "effect_value": (torch.float32, 1),
        }
    again = ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW)
    for a, b in zip(found, again, strict=True):
        assert all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())
    none = ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW.model_copy(update={"effect_contexts": 0}))
    assert all(not f.effect_measured.any() and len(f.effect_value) == 0 for f in none)


def test_blocks_of_the_vocabulary_and_stretches_of_contexts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus, subjects, examples = several()
    whole = ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW)
    monkeypatch.setattr(effects_direct, "STREAM_BYTES", 3 * 4 * 32 * LENGTH)
    monkeypatch.setattr(effects_direct, "TABLE_BYTES", 4 * 26 * 50)
    monkeypatch.setattr(effects_direct, "TOKEN_BYTES", 4 * 50 * 7)
    monkeypatch.setattr(effects_direct, "PAIR_BYTES", 4 * 50 * 3)
    monkeypatch.setattr(effects_direct, "FORWARD_TOKENS", 2 * LENGTH)
    for a, b in zip(whole, ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW), strict=True):
        assert torch.equal(a.effect_start, b.effect_start)
        assert torch.allclose(a.effect_value, b.effect_value, atol=1e-5)


def test_logits_beyond_what_exp_can_hold() -> None:
    model, corpus = tiny("gpt2"), tiny_corpus(tiny("gpt2"))
    subject = tiny_subject(model, "mlp_out@2", "resid_update")
    wild = dataclasses.replace(subject, space=dataclasses.replace(subject.space, scale=-30 * subject.space.scale))
    examples = tiny_examples(codes(model, wild, corpus), wild)
    for factor in (1, 300):
        sharp = Prediction.of(model)
        sharp = dataclasses.replace(sharp, W_U=factor * sharp.W_U, bias=factor * sharp.bias)
        pairs = effects_direct.Pairs(
            torch.zeros(len(examples.example_token), dtype=torch.int64),
            examples.feature(),
            examples.example_token.long(),
            examples.example_value,
        )
        order = pairs.token.argsort()
        order = order[pairs.token[order] % LENGTH < LENGTH - 1]
        pairs = effects_direct.Pairs(*(getattr(pairs, f.name)[order] for f in dataclasses.fields(pairs)))
        got = effects_direct.direct_effects(model, sharp, [wild], corpus, pairs, lambda done: None)
        resid = read(model, corpus, "resid_post@2")[0]["resid_post@2"][pairs.token]
        rows = wild.space.lift(wild.dictionary.W_dec) - wild.space.lift(torch.zeros_like(wild.dictionary.W_dec))
        target = corpus.tokens.flatten()[pairs.token + 1].long()
        losses = []
        for r in (resid, resid - pairs.value[:, None] * rows[pairs.feature]):
            normal = sharp.norm.apply(r).double() @ sharp.W_U.double()
            losses.append(torch.nn.functional.cross_entropy(normal, target, reduction="none"))
        expected = losses[1] - losses[0]
        assert torch.isfinite(got).all() and (got - expected).abs().max() < 1e-4 * (1 + expected.abs().max())


def test_effects_before_the_first_activation_are_exactly_none() -> None:
    model, corpus = tiny("gpt2"), tiny_corpus(tiny("gpt2"))
    subject = tiny_subject(model, "mlp_out@0", "resid_update")
    f = codes(model, subject, corpus)
    examples = tiny_examples(f, subject)
    found = ablation_effects(model, [subject], corpus, [examples], ROWS, WINDOW)[0]
    windows, features = examples.windows(LENGTH, WINDOW.before, WINDOW.after), examples.feature()
    checked = 0
    for e in found.effect_measured.nonzero().flatten().tolist():
        starts = int((f[windows.context[e], :, features[e]] > 0).nonzero()[0])
        entries = found.effect_offset[found.effect_start[e] : found.effect_start[e + 1]].long() + windows.first[e]
        assert (entries > starts).all()
        checked += int(starts >= windows.first[e])
    assert checked > 0


def test_a_model_with_another_final_norm_has_no_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_tools.errors import UserError

    def refuse(model: LanguageModel) -> Prediction:
        raise UserError("The final norm is of another kind.")

    model, corpus, subjects, examples = several()
    monkeypatch.setattr(Prediction, "of", staticmethod(refuse))
    for found in ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW):
        assert not found.effect_measured.any()


def test_a_model_that_makes_its_logits_in_another_way_has_no_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus, subjects, examples = several()
    W_U = Prediction.of(model).W_U
    monkeypatch.setattr(prediction, "unembed", lambda model: (W_U * 0.9, torch.zeros(W_U.shape[1]), None))
    for effects in ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW):
        assert not effects.effect_measured.any()


def test_general_and_direct_paths_agree() -> None:
    """On a site that both can do, examples by the thousand of tokens."""
    from sae_tools.analysis import effects

    model, corpus, subjects, examples = several()
    direct = ablation_effects(model, subjects, corpus, examples, ROWS, WINDOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(effects, "is_direct", lambda model, site: False)
        cfg = WINDOW.model_copy(update={"effect_contexts": 100})
        general = ablation_effects(model, subjects, corpus, examples, ROWS, cfg)
    for n in (0, 2):
        dense = []
        for found in (direct[n], general[n]):
            values = torch.zeros(len(found.effect_measured), WINDOW.before + WINDOW.after + 1)
            row = torch.arange(len(values)).repeat_interleave(found.effect_start.diff())
            values[row, found.effect_offset.long()] = found.effect_value
            dense.append(values)
        assert torch.allclose(*dense, atol=3e-5)
