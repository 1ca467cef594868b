"""Ablation effects where nothing after the site mixes positions: exact, and cheap enough for every example.

Taking a feature away at token t changes the last residual stream there to r - c b, and with r̃ and b̃ the two centred,
σ' the final norm's scale of r - c b, and L, w their maps through the norm's weight and the unembedding, the logits to

    (L - c w) / σ' + bias.

So a token costs one product with the unembedding, a feature another, and a (feature, token) pair only sums over the
vocabulary. With a large vocabulary the features' maps are made for one block of it after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.directions import residual_map, sigma_at, site_directions
from sae_tools.analysis.prediction import Prediction
from sae_tools.analysis.subject import Subject
from sae_tools.models.capture import capture
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site, resolve_site

STREAM_BYTES = 128 * 2**20
"""Bound on residual streams held at once: contexts are taken in stretches of that size."""
TABLE_BYTES = 128 * 2**20
"""Bound on the features' maps to the logits held at once: the vocabulary is taken in blocks of that size."""
TOKEN_BYTES = 8 * 2**20
"""The same for the tokens' maps, and"""
PAIR_BYTES = 4 * 2**20
"""for pairs: small enough for the processor's cache."""
FORWARD_TOKENS = 4096
"""Tokens in one forward pass."""
FORWARD_SHARE = 0.5
"""Of the work, roughly, that the model's pass is: for progress."""


@dataclass(frozen=True)
class Pairs:
    """Where features are taken away, one entry for each token, sorted by token."""

    subject: Int64[Tensor, " pairs"]
    feature: Int64[Tensor, " pairs"]
    token: Int64[Tensor, " pairs"]
    """Flat index in the corpus; never the last of a context."""
    value: Float32[Tensor, " pairs"]
    """Activation, decoder row of norm 1."""


def is_direct(model: LanguageModel, site: Site) -> bool:
    """Whether what is written at `site` reaches the final norm at its own token, by a fixed linear map."""
    last = site.layer == model.n_layers - 1
    return last and site.kind in ("mlp_acts", "mlp_out", "resid_post") and residual_map(site, model) is not None


@torch.no_grad()
def direct_effects(
    model: LanguageModel,
    prediction: Prediction,
    subjects: list[Subject],
    corpus: Corpus,
    pairs: Pairs,
    progress: Callable[[int], None],
) -> Float32[Tensor, " pairs"]:
    """Loss of predicting the token after, with the feature taken away minus without, in nats.

    progress: called with the number of contexts done.
    """
    effects = torch.zeros(len(pairs.token))
    per_stretch = max(1, STREAM_BYTES // (4 * model.d_model * corpus.length))
    directions = [_residual_rows(subject, model) for subject in subjects]
    for first in range(0, corpus.contexts, per_stretch):
        stop = min(first + per_stretch, corpus.contexts)
        ends = torch.searchsorted(pairs.token, torch.tensor([first, stop]) * corpus.length).tolist()
        here = slice(*ends)
        if ends[0] < ends[1]:
            part = Pairs(pairs.subject[here], pairs.feature[here], pairs.token[here], pairs.value[here])

            def report(share: float, first: int = first, stop: int = stop) -> None:
                progress(first + int(share * (stop - first)))

            effects[here] = _Stretch(model, prediction, subjects, directions, corpus, part, report).effects(report)
        progress(stop)
    return effects


def _residual_rows(subject: Subject, model: LanguageModel) -> Float[Tensor, "d_sae d_model"]:
    to_residual = residual_map(subject.written_site, model)
    assert to_residual is not None
    return to_residual(site_directions(subject)).to(model.device)


class _Stretch:
    """Some contexts and the pairs in them."""

    def __init__(
        self,
        model: LanguageModel,
        prediction: Prediction,
        subjects: list[Subject],
        directions: list[Tensor],
        corpus: Corpus,
        pairs: Pairs,
        report: Callable[[float], None],
    ):
        """report: called with the share of the work that is done, as by `effects`."""
        self.prediction, self.pairs = prediction, pairs
        norm, self.device = prediction.norm, model.device
        tokens, row = pairs.token.unique_consecutive(return_inverse=True)
        self.row = row.to(self.device)
        """Of each pair: its token's place among the tokens that have pairs."""
        self.target = corpus.tokens.flatten()[tokens + 1].long().to(self.device)
        streams = []
        for part in _final_streams(model, corpus, tokens):
            streams.append(part)
            report(FORWARD_SHARE * sum(map(len, streams)) / len(tokens))
        resid = torch.cat(streams)
        scale = norm.scale(resid)
        self.centred = norm.centred(resid)
        self.scale = scale.squeeze(1)
        # Only features that are taken away here have a row in the table.
        offsets = torch.tensor([0, *(len(d) for d in directions)]).cumsum(0)
        features, self.feature = (offsets[pairs.subject] + pairs.feature).unique(return_inverse=True)
        self.feature = self.feature.to(self.device)
        table = torch.cat(directions) if len(directions) > 1 else directions[0]
        self.directions = norm.centred(table[features.to(self.device)])
        self.amount = pairs.value.to(self.device)
        position = (tokens % corpus.length).to(self.device)
        for number, subject in enumerate(subjects):
            mine = (pairs.subject == number).to(self.device)
            if bool(mine.any()) and subject.written.ln != "none":
                space = subject.written.to(self.device)
                self.amount = torch.where(
                    mine, self.amount * sigma_at(space, self.scale, position)[self.row], self.amount
                )
        self.new_scale = self._scale_after()

    def _scale_after(self) -> Float[Tensor, " pairs"]:
        out = torch.empty_like(self.amount)
        for part in _slices(len(out), 4 * self.centred.shape[1], PAIR_BYTES):
            left = self._left(part)
            out[part] = (left.pow(2).mean(1) + self.prediction.norm.eps).sqrt()
        return out

    def _left(self, part: slice) -> Float[Tensor, "pairs d"]:
        """The centred stream without the feature."""
        taken = self.directions[self.feature[part]] * self.amount[part].unsqueeze(1)
        return self.centred[self.row[part]] - taken

    def effects(self, report: Callable[[float], None]) -> Float32[Tensor, " pairs"]:
        if self.prediction.cap is not None:
            return self._one_by_one(torch.ones_like(self.row, dtype=torch.bool)).cpu()
        W_U, weight = self.prediction.W_U, self.prediction.norm.weight
        streams, directions = self.centred * (weight / self.scale.unsqueeze(1)), self.directions * weight
        # What is the same for all of the vocabulary cancels out, and is taken off so that exp() stays in range.
        mean = W_U.mean(1, dtype=torch.float64).float()
        original, ablated = _Sums(len(streams), self.device), _Sums(len(self.row), self.device)
        shrink = self.scale[self.row] / self.new_scale
        taken = self.amount / self.new_scale
        shift = torch.zeros_like(self.scale)
        block_width = max(1, TABLE_BYTES // (4 * len(directions)))
        for start in range(0, W_U.shape[1], block_width):
            block = slice(start, min(start + block_width, W_U.shape[1]))
            W, bias = W_U[:, block].float(), self.prediction.bias[block]
            table = (directions @ W).sub_((directions @ mean).unsqueeze(1))
            # Fresh memory for every handful of pairs would cost more than what is computed in it.
            buffers = [W.new_empty(max(1, PAIR_BYTES // (4 * W.shape[1])), W.shape[1]) for _ in range(2)]
            done = 0
            for rows in _slices(len(streams), 4 * W.shape[1], TOKEN_BYTES):
                logits = (streams[rows] @ W).sub_((streams[rows] @ mean).unsqueeze(1))
                if start == 0:
                    shift[rows] = torch.logsumexp(logits + bias, 1)
                logits -= shift[rows].unsqueeze(1)
                original.add(logits + bias, rows, self.target[rows] - start)
                stop = int(torch.searchsorted(self.row, rows.stop))
                for part in _slices(stop - done, 4 * W.shape[1], PAIR_BYTES, first=done):
                    x, w = (scratch[: part.stop - part.start] for scratch in buffers)
                    torch.index_select(logits, 0, self.row[part] - rows.start, out=x)
                    torch.index_select(table, 0, self.feature[part], out=w)
                    torch.addcmul(bias, x, shrink[part].unsqueeze(1), out=x)
                    x.addcmul_(w, taken[part].unsqueeze(1), value=-1)
                    ablated.add(x, part, self.target[self.row[part]] - start)
                done = stop
                share = (start + (block.stop - start) * rows.stop / len(streams)) / W_U.shape[1]
                report(FORWARD_SHARE + (1 - FORWARD_SHARE) * share)
        effects = ablated.losses() - original.losses()[self.row]
        wild = ~torch.isfinite(effects)  # exp() left the range of float32
        if bool(wild.any()):
            effects[wild] = self._one_by_one(wild)
        return effects.cpu()

    def _one_by_one(self, which: Bool[Tensor, " pairs"]) -> Float[Tensor, " some"]:
        """By a product with the unembedding for each pair: slower, and right for whatever logits."""
        index = which.nonzero().squeeze(1)
        out = []
        for part in _slices(len(index), 4 * self.centred.shape[1], PAIR_BYTES):
            pairs = index[part]
            target = self.target[self.row[pairs]]
            taken = self.directions[self.feature[pairs]] * self.amount[pairs].unsqueeze(1)
            before = self.centred[self.row[pairs]]
            out.append(self.prediction.losses(before - taken, target) - self.prediction.losses(before, target))
        return torch.cat(out)


class _Sums:
    """Σ exp over blocks of the vocabulary, and the target's logit."""

    def __init__(self, rows: int, device: torch.device):
        self.total = torch.zeros(rows, device=device)
        self.picked = torch.zeros(rows, device=device)

    def add(self, logits: Float[Tensor, "rows block"], rows: slice, target: Int64[Tensor, " rows"]) -> None:
        """target: from the block's first token on, outside where it is in another. Overwrites the logits."""
        inside = (target >= 0) & (target < logits.shape[1])
        picked = logits.gather(1, target.clamp(0, logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
        self.picked[rows] += torch.where(inside, picked, 0.0)
        self.total[rows] += logits.exp_().sum(1)

    def losses(self) -> Float[Tensor, " rows"]:
        return self.total.log() - self.picked


def _final_streams(
    model: LanguageModel, corpus: Corpus, tokens: Int64[Tensor, " tokens"]
) -> Iterator[Float[Tensor, "some d"]]:
    """The last layer's resid_post at the flat token indices, which are sorted; float32."""
    hook = resolve_site(model, f"resid_post@{model.n_layers - 1}").hook_name
    contexts = (tokens // corpus.length).unique()
    for group in contexts.split(max(1, FORWARD_TOKENS // corpus.length)):
        resid = capture(model, corpus.tokens[group].long().to(model.device), [hook])[hook]
        ends = torch.searchsorted(tokens, torch.stack([group[0], group[-1] + 1]) * corpus.length).tolist()
        here = tokens[ends[0] : ends[1]]
        row = torch.searchsorted(group, here // corpus.length) * corpus.length + here % corpus.length
        yield resid.flatten(0, 1)[row.to(resid.device)].float()


def _slices(stop: int, row_bytes: int, bound: int, first: int = 0) -> Iterator[slice]:
    """The next `stop` things from `first` on, as many at a time as fit into `bound` bytes."""
    step = max(1, bound // row_bytes)
    for start in range(first, first + stop, step):
        yield slice(start, min(start + step, first + stop))
