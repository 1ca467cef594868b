"""Harvest: contexts of tokens in, one row per token out, with the activations of every site the job reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_tools.config import RowsConfig
from sae_tools.errors import UserError
from sae_tools.models.capture import capture, trusted_view
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.load import LanguageModel
from sae_tools.models.plain import FINAL_RESID
from sae_tools.models.sites import Site
from sae_tools.models.size import flops_per_token
from sae_tools.rows import Contexts, Rows


class Harvester:
    """Runs the language model once per batch of contexts, no further than its sites need."""

    def __init__(self, model: LanguageModel, sites: Sequence[Site], rows: RowsConfig, need_scale: bool = False):
        """sites: what the rows hold; several mentions of one count once.
        rows: which tokens become rows.
        need_scale: also read the final norm's scale at each token; then every layer runs (never the unembedding).
        """
        if not sites and not need_scale:
            raise ValueError("a harvester needs at least one site or the scale")
        self.model = model
        self.sites = list({site.name: site for site in sites}.values())
        self.rows = rows
        self.need_scale = need_scale
        self._norm = FinalNorm.of(model) if need_scale else None
        self._hooks = [site.hook_name for site in self.sites] + ([FINAL_RESID] if need_scale else [])
        self._special = torch.tensor(model.special_token_ids if rows.skip_special else (), dtype=torch.int64)

    @property
    def last_layer(self) -> int:
        """The last layer that runs (it may stop within it)."""
        return self.model.n_layers - 1 if self.need_scale else max(site.layer for site in self.sites)

    @property
    def fast(self) -> bool:
        """Whether the plain view is used (models/plain.py) rather than the bridge."""
        return trusted_view(self.model, self._hooks) is not None

    def flops_per_token(self, context: int | None = None) -> int:
        """Of the forward pass, for each token of a context of that length (default: the model's longest)."""
        return flops_per_token(self.model, self.last_layer, context=context)

    def keep(self, tokens: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
        """Which tokens become rows: not the first positions, not special tokens, as the settings say."""
        kept = torch.isin(tokens, self._special.to(tokens.device), invert=True)
        kept[:, : self.rows.skip_positions] = False
        return kept

    def harvest(self, contexts: Contexts) -> Rows:
        """Rows in the order of the contexts, on the model's device: activations and scale in float32 whatever the
        model's precision, detached, sharing no storage with the model's own tensors. May be empty.

        UserError for contexts that are longer than the model's, or tokens outside its vocabulary.
        """
        tokens = contexts.tokens
        self._check(tokens)
        kept = self.keep(tokens).flatten()
        index = kept.nonzero().squeeze(-1)
        device = self.model.device
        if not len(index):
            return self._no_rows()
        found = capture(self.model, tokens.to(device), self._hooks)
        chosen = index.to(device)

        def rows_of(hook: str) -> Tensor:
            return found[hook].flatten(0, 1).index_select(0, chosen)

        position = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        return Rows(
            {site.name: rows_of(site.hook_name).float() for site in self.sites},
            tokens.flatten()[index].to(device),
            position.flatten()[index].to(device),
            contexts.document.flatten()[index].to(device),
            None if self._norm is None else self._norm.scale(rows_of(FINAL_RESID)).squeeze(-1),
        )

    def _check(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.model.n_ctx:
            raise UserError(
                f"data.context_length is {tokens.shape[1]}, but {self.model.name} takes at most {self.model.n_ctx} "
                f"tokens."
            )
        if tokens.shape[1] <= self.rows.skip_positions:
            raise UserError(
                f"rows.skip_positions is {self.rows.skip_positions}, which leaves no rows of contexts of "
                f"{tokens.shape[1]} tokens."
            )
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.model.d_vocab:
            raise UserError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of {self.model.name} "
                f"(0 to {self.model.d_vocab - 1}): the text was tokenised for another model."
            )

    def _no_rows(self) -> Rows:
        device = self.model.device
        none = torch.empty(0, dtype=torch.int64, device=device)
        activations = {site.name: torch.empty(0, site.width, device=device) for site in self.sites}
        return Rows(activations, none, none, none, torch.empty(0, device=device) if self.need_scale else None)


def collect_rows(stream: Iterator[Contexts], harvester: Harvester, count: int) -> Rows:
    """The first `count` rows of the stream, unshuffled, to estimate centres and scales from; fewer if it ends early.
    UserError if there are none at all."""
    rows, total = None, 0
    while total < count:
        contexts = next(stream, None)
        if contexts is None:
            break
        part = harvester.harvest(contexts)[: count - total]
        if rows is None:
            rows = part.empty_like(count)
        rows.put(total, part)
        total += len(part)
    if rows is None or not total:
        raise UserError("The text gives no rows: after left-out positions and special tokens nothing remains.")
    return rows[:total]
