"""Ablation effects wherever the site is: the rest of the model runs again for every (feature, context)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.directions import sigma_at, site_directions, unit_norms
from sae_tools.analysis.prediction import Prediction
from sae_tools.analysis.subject import Subject
from sae_tools.models.capture import Activations
from sae_tools.models.intervene import Edit, Prefix, capture_with_prefix, stream_with_edits
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import resolve_site

BATCH_BYTES = 64 * 2**20
"""Bound on the largest tensor of activations in a batch of edited contexts."""
CODE_BYTES = 32 * 2**20
"""Bound on dense activations of a dictionary."""


@dataclass(frozen=True)
class Ablations:
    """Examples of one dictionary whose effect is measured, sorted by context, then by `stop`."""

    subject: Subject
    feature: Int64[Tensor, " examples"]
    context: Int64[Tensor, " examples"]
    first: Int64[Tensor, " examples"]
    """Position of the window's first token, and"""
    stop: Int64[Tensor, " examples"]
    """after its last: the loss of predicting each of them is measured."""


@torch.no_grad()
def general_effects(
    model: LanguageModel,
    prediction: Prediction,
    ablations: list[Ablations],
    corpus: Corpus,
    width: int,
    progress: Callable[[int], None],
) -> list[Float32[Tensor, "examples width"]]:
    """For each dictionary: loss of predicting the window's tokens, with the feature taken away at every kept token of
    the context minus without, in nats; 0 beyond the window's end, and exactly 0 up to the feature's first activation.

    width: of the widest window. progress: called with the number of contexts done.
    """
    effects = [torch.zeros(len(a.feature), width) for a in ablations]
    directions = [site_directions(a.subject).to(model.device) for a in ablations]
    units = [unit_norms(a.subject.dictionary) for a in ablations]
    sites = {site.name: site for a in ablations for site in a.subject.sites}
    final = resolve_site(model, f"resid_post@{model.n_layers - 1}")
    for context in torch.cat([a.context for a in ablations]).unique().tolist():
        here = [slice(*torch.searchsorted(a.context, torch.tensor([context, context + 1])).tolist()) for a in ablations]
        length = max(int(a.stop[h].max()) for a, h in zip(ablations, here, strict=True) if h.start < h.stop)
        tokens = corpus.tokens[context : context + 1, :length].long().to(model.device)
        activations, prefix = capture_with_prefix(model, tokens, [*sites.values(), final])
        stream = activations[final.name][0]
        clean = _Clean(model, prediction, tokens[0], corpus.kept[context, :length], activations, prefix, stream)
        for a, h, rows, unit, out in zip(ablations, here, directions, units, effects, strict=True):
            if h.start < h.stop:
                out[h] = clean.effects(a, h, rows, unit, width)
        progress(context + 1)
    return effects


class _Clean:
    """One context as it is, and what becomes of it without a feature."""

    def __init__(
        self,
        model: LanguageModel,
        prediction: Prediction,
        tokens: Int64[Tensor, " length"],
        kept: Bool[Tensor, " length"],
        activations: Activations,
        prefix: Prefix,
        stream: Float[Tensor, "length d"],
    ):
        self.model, self.prediction, self.tokens, self.kept = model, prediction, tokens, kept
        self.activations, self.prefix = activations, prefix
        self.scale = prediction.norm.scale(stream).squeeze(1)
        self.loss = prediction.losses(stream[:-1].float(), tokens[1:])
        """Of predicting the token after each position but the last."""

    def effects(
        self, a: Ablations, here: slice, directions: Float[Tensor, "d_sae d_site"], unit: Tensor, width: int
    ) -> Float[Tensor, "examples width"]:
        """Of the examples `here`, which are in this context."""
        site, home = a.subject.written_site, self.tokens.device
        features, column = a.feature[here].unique(return_inverse=True)
        taken = self._taken(a.subject, features, unit).T  # [features, length]
        out = torch.zeros(here.stop - here.start, width)
        item = 4 * len(self.tokens) * max(site.width, self.model.d_mlp)
        for rows in torch.arange(len(out)).split(max(1, BATCH_BYTES // item)):
            stop = int(a.stop[here][rows].max())
            amount = taken[column[rows].to(home), :stop]
            change = amount.unsqueeze(2) * directions[a.feature[here][rows].to(home)].unsqueeze(1)
            edit = Edit(site, lambda x, change=change: x - change.to(x.dtype))
            copies = self.prefix.repeated(len(rows), stop)
            stream = stream_with_edits(self.model, copies.tokens, [edit], prefix=copies)
            # The prediction of the token at `position`, where the feature has fired before it.
            position = a.first[here][rows].unsqueeze(1) + torch.arange(width)
            wanted = (position >= 1) & (position < a.stop[here][rows].unsqueeze(1))
            before = (position - 1).clamp(0, stop - 1).to(home)
            fired = (amount > 0).cumsum(1).gather(1, before).cpu() > 0
            row, offset = (wanted & fired).nonzero(as_tuple=True)
            at = before[row.to(home), offset.to(home)]
            loss = self.prediction.losses(stream[row.to(home), at].float(), self.tokens[at + 1])
            out[rows[row], offset] = (loss - self.loss[at]).cpu()
        return out

    def _taken(
        self, subject: Subject, features: Int64[Tensor, " features"], unit: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "length features"]:
        """Activations at kept tokens (decoder row of norm 1) times the σ of the written space; 0 elsewhere."""
        device = subject.dictionary.b_dec.device
        kept = self.kept.nonzero().squeeze(1)
        out = torch.zeros(len(self.tokens), len(features))
        for rows in kept.split(max(1, CODE_BYTES // (4 * subject.dictionary.d_sae))):
            x = self.activations[subject.site.name][0][rows.to(self.tokens.device)].to(device)
            scale, position = self.scale[rows.to(self.tokens.device)].to(device), rows.to(device)
            f = subject.dictionary.encode(subject.space.forward(x, scale, position))[:, features.to(device)]
            sigma = sigma_at(subject.written, scale, position)
            out[rows] = (f * unit[features.to(device)] * sigma.unsqueeze(1)).float().cpu()
        return out.to(self.tokens.device)
