"""What taking a feature away does to the model's loss, token by token.

The ablation is that of Bricken et al. 2023 ('Towards Monosemanticity'): x_t <- x_t - f_i(x_t) d_i at every kept token t
of the context at once, d_i the decoder row taken back to the site, so that the dictionary's error stays; then the rest
of the model runs. Reported is the change of -log p of each token of an example's window, in nats: positive where the
feature helped to predict that token. Exact, not linearised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.effects_direct import Pairs, direct_effects, is_direct
from sae_tools.analysis.effects_general import Ablations, general_effects
from sae_tools.analysis.examples import Examples
from sae_tools.analysis.prediction import Prediction
from sae_tools.analysis.subject import Subject
from sae_tools.config import RowsConfig
from sae_tools.config_report import ReportConfig
from sae_tools.errors import UserError
from sae_tools.models.load import LanguageModel


@dataclass(frozen=True)
class Effects:
    """By the examples of one dictionary; fields are named as in the file (analysis/feature_files.py)."""

    effect_measured: Bool[Tensor, " examples"]
    effect_start: Int64[Tensor, " bounds"]
    """Example e has the entries from start[e] to start[e + 1]."""
    effect_offset: UInt8[Tensor, " entries"]
    """Place of the token, counted from the window's first, whose prediction is changed; ascending."""
    effect_value: Float32[Tensor, " entries"]
    """Loss of predicting it, ablated - original, nats; not 0."""

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@torch.no_grad()
def ablation_effects(
    model: LanguageModel,
    subjects: list[Subject],
    corpus: Corpus,
    examples: list[Examples],
    rows: RowsConfig,
    cfg: ReportConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Effects]:
    """The effect of ablating each example's feature, for the first `cfg.effect_contexts` examples of every feature
    (None: all where the direct path serves, else one).

    rows: what `corpus.kept` was made by.
    progress: called with the contexts done and their total (several times the corpus's where both paths are needed).
    """
    direct = [is_direct(model, subject.written_site) for subject in subjects]
    measured = [
        _measured(e, cfg.effect_contexts if cfg.effect_contexts is not None or d else 1)
        for e, d in zip(examples, direct, strict=True)
    ]
    try:
        prediction = Prediction.of(model)
    except UserError:  # a final norm of another kind
        measured = [torch.zeros_like(m) for m in measured]
        return [_gathered(m, *_nothing()) for m in measured]
    work = [[n for n, m in enumerate(measured) if d == direct[n] and bool(m.any())] for d in (True, False)]
    passes = [bool(work[0]), bool(work[1])]
    total = corpus.contexts * sum(passes)

    def stage(number: int) -> Callable[[int], None]:
        before = corpus.contexts * sum(passes[:number])
        return lambda done: progress(before + done, total)

    entries: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for number, measure in enumerate((_direct, _general)):
        if work[number]:
            chosen, mine = [subjects[n] for n in work[number]], [examples[n] for n in work[number]]
            use = [measured[n] for n in work[number]]
            found = measure(model, prediction, chosen, corpus, mine, use, cfg, stage(number))
            entries |= dict(zip(work[number], found, strict=True))
    return [_gathered(m, *entries.get(n, _nothing())) for n, m in enumerate(measured)]


def _measured(examples: Examples, contexts: int | None) -> Bool[Tensor, " examples"]:
    rank = examples.rank()
    return torch.ones_like(rank, dtype=torch.bool) if contexts is None else rank < contexts


def _nothing() -> tuple[Tensor, Tensor, Tensor]:
    empty = torch.zeros(0, dtype=torch.int64)
    return empty, empty, torch.zeros(0)


def _gathered(
    measured: Bool[Tensor, " examples"],
    example: Int64[Tensor, " entries"],
    offset: Int64[Tensor, " entries"],
    value: Float32[Tensor, " entries"],
) -> Effects:
    there = value != 0
    example, offset, value = example[there], offset[there], value[there]
    order = (example * 256 + offset).argsort()
    start = torch.zeros(len(measured) + 1, dtype=torch.int64)
    start[1:] = torch.bincount(example, minlength=len(measured)).cumsum(0)
    return Effects(measured, start, offset[order].to(torch.uint8), value[order])


def _direct(
    model: LanguageModel,
    prediction: Prediction,
    subjects: list[Subject],
    corpus: Corpus,
    examples: list[Examples],
    measured: list[Tensor],
    cfg: ReportConfig,
    progress: Callable[[int], None],
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(example, offset, effect) of every activation in a window, but for its last token, and just before it."""
    entries = [_activations(e, m, corpus.length, cfg) for e, m in zip(examples, measured, strict=True)]
    # The same activation may be in the windows of several examples.
    size = [subject.dictionary.d_sae for subject in subjects]
    base = torch.tensor([0, *size]).cumsum(0)
    key = torch.cat(
        [
            token * base[-1] + base[n] + e.feature()[example]
            for n, (e, (example, _, token, _)) in enumerate(zip(examples, entries, strict=True))
        ]
    )
    unique, inverse = key.unique(return_inverse=True)
    value = torch.zeros(len(unique))
    value[inverse] = torch.cat([v for _, _, _, v in entries])
    joint = unique % base[-1]
    subject = torch.searchsorted(base, joint, right=True) - 1
    pairs = Pairs(subject, joint - base[subject], unique // base[-1], value)
    effects = direct_effects(model, prediction, subjects, corpus, pairs, progress)[inverse]
    split = effects.split([len(example) for example, *_ in entries])
    return [(example, offset, part) for (example, offset, *_), part in zip(entries, split, strict=True)]


def _activations(
    examples: Examples, measured: Tensor, length: int, cfg: ReportConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(example, offset, token, value) of the activations that have a part in predicting the windows' tokens: offset is
    that of the predicted token, token the flat index of the one before."""
    windows = examples.windows(length, cfg.before, cfg.after)
    example = torch.arange(len(measured)).repeat_interleave(examples.window_start.diff())
    offset = examples.window_offset.long() + 1
    use = measured[example] & (windows.first[example] + offset < windows.stop[example])
    example, offset, value = example[use], offset[use], examples.window_value[use]
    before = (measured & (examples.lead_value > 0)).nonzero().squeeze(1)
    example, offset = torch.cat([before, example]), torch.cat([torch.zeros_like(before), offset])
    token = windows.context[example] * length + windows.first[example] + offset - 1
    return example, offset, token, torch.cat([examples.lead_value[before], value])


def _general(
    model: LanguageModel,
    prediction: Prediction,
    subjects: list[Subject],
    corpus: Corpus,
    examples: list[Examples],
    measured: list[Tensor],
    cfg: ReportConfig,
    progress: Callable[[int], None],
) -> list[tuple[Tensor, Tensor, Tensor]]:
    ablations, numbers = [], []
    for subject, e, m in zip(subjects, examples, measured, strict=True):
        windows = e.windows(corpus.length, cfg.before, cfg.after)
        order = (windows.context * corpus.length + windows.stop - 1).argsort(stable=True)
        order = order[m[order]]
        numbers.append(order)
        ablations.append(
            Ablations(subject, e.feature()[order], windows.context[order], windows.first[order], windows.stop[order])
        )
    width = cfg.before + 1 + cfg.after
    effects = general_effects(model, prediction, ablations, corpus, width, progress)
    found = []
    for number, values in zip(numbers, effects, strict=True):
        row, offset = values.nonzero(as_tuple=True)
        found.append((number[row], offset, values[row, offset]))
    return found
