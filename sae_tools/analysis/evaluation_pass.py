"""The pass of an evaluation: every dictionary, every ablation, on the same contexts, each forward pass made once.

sums = Evaluation.start(model, subjects, means, …)
for contexts in batches: sums.update(contexts)
sums.merge(of another part of the corpus)
sums.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.analysis.evaluation_sums import TOKENS, Masks, SiteSums, Splices, SubjectSums, Which
from sae_tools.analysis.fidelity import LOGIT_BYTES, ablation_site, site_means
from sae_tools.analysis.losses import TokenLosses, token_losses
from sae_tools.analysis.splicing import ablations, splice
from sae_tools.analysis.subject import Subject, kept_positions, reconstruct
from sae_tools.config import RowsConfig
from sae_tools.memory import release_freed_memory
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.intervene import Edit, logits_with_edits, run_and_capture
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site, resolve_site
from sae_tools.rows import Contexts
from sae_tools.seeds import generator
from sae_tools.spaces import forward_chain, logit_root
from sae_tools.spaces.maps import Measure

Batches = Callable[[], Iterable[Contexts]]
Counted = Callable[[int], None]


@dataclass(eq=False)
class Evaluation:
    """Accumulators of all dictionaries and sites, and what an update needs."""

    model: LanguageModel
    subjects: list[Subject]
    rows: RowsConfig
    seed: int
    length: int
    means: dict[str, Float[Tensor, " d_site"]]
    """By the ablated site's name: over rows."""
    norm: FinalNorm
    final: Site
    chains: dict[str, dict[str, Measure]]
    sums: dict[str, SubjectSums]
    """By the dictionary's name."""
    sites: dict[str, SiteSums]
    """By the ablated site's name."""
    original: Splices
    batches: int = 0

    @staticmethod
    def start(
        model: LanguageModel,
        subjects: list[Subject],
        rows: RowsConfig,
        length: int,
        means: dict[str, Float[Tensor, " d_site"]],
        seed: int,
    ) -> Evaluation:
        """length: of a context. means: of every `ablation_site`. Names of subjects must differ."""
        direct = any(subject.written.kind in ("mlp_acts", "resid_update", "logit_update") for subject in subjects)
        root = logit_root(model) if direct else None
        chains = {s.name: forward_chain(s.written, model, root=root) for s in subjects}
        return Evaluation(
            model,
            subjects,
            rows,
            seed,
            length,
            means,
            FinalNorm.of(model),
            resolve_site(model, f"resid_post@{model.n_layers - 1}"),
            chains,
            {s.name: SubjectSums(s.dictionary.d_sae, length, list(chains[s.name])) for s in subjects},
            {site.name: SiteSums(site, length) for site in ablated_sites(model, subjects)},
            Splices(length),
        )

    def merge(self, other: Evaluation) -> None:
        """What another evaluation of the same subjects has counted on other contexts."""
        for name, sums in self.sums.items():
            sums.merge(other.sums[name])
        for name, sums in self.sites.items():
            sums.merge(other.sites[name])
        self.original.merge(other.original)

    @torch.no_grad()
    def update(self, contexts: Contexts) -> None:
        tokens = contexts.tokens.to(self.model.device)
        kept = kept_positions(tokens, self.rows, self.model.special_token_ids)
        masks: Masks = {"rows": kept, "all": torch.ones_like(kept)}
        read = [site for subject in self.subjects for site in subject.sites]
        read += [sums.site for sums in self.sites.values()] + [self.final]
        clean = run_and_capture(self.model, tokens, list({site.name: site for site in read}.values()))
        activations, prefix = clean.activations, clean.prefix
        original = torch.log_softmax(clean.logits.float(), -1)
        self.original.update_both(token_losses(clean.logits, original, tokens), masks)
        del clean  # its logits are as large as what was made of them
        scale = self.norm.scale(activations[self.final.name]).flatten()

        def run(edit: Edit) -> TokenLosses:
            return token_losses(logits_with_edits(self.model, tokens, [edit], prefix=prefix), original, tokens)

        everything = bool(kept.all())

        def each(make: Callable[[Which], Edit], into: Splices) -> None:
            if everything:
                into.update_both(run(make("rows")), masks)
                return
            for edited in TOKENS:
                into.update(edited, run(make(edited)), masks)

        for subject in self.subjects:
            y_hat, site = self._reconstruct(subject, activations, scale, kept), subject.written_site
            each(lambda e, s=site, v=y_hat: splice(s, masks[e], v[masks[e]]), self.sums[subject.name].spliced)
        for name, sums in self.sites.items():
            x, mean = activations[name], self.means[name]
            made: dict[Which, dict[str, Edit]] = {}
            for edited in TOKENS:
                random = generator(self.seed, "resample", self.batches, name, edited)
                made[edited] = ablations(sums.site, x, mean, masks[edited], random)
            for kind, into in sums.ablated.items():
                each(lambda e, kind=kind, made=made: made[e][kind], into)
        self.batches += 1
        release_freed_memory()  # tensors of many sizes, whose holes would add up from batch to batch

    def _reconstruct(
        self, subject: Subject, activations: dict[str, Tensor], scale: Tensor, kept: Tensor
    ) -> Float[Tensor, "batch position d"]:
        """What the dictionary makes of every token, in [batch, position]; rows and other tokens are counted apart."""
        mine, row = self.sums[subject.name], kept.flatten()
        x = activations[subject.site.name].flatten(0, 1).float()
        y = activations[subject.written_site.name].flatten(0, 1).float()
        position = torch.arange(self.length, device=x.device).repeat(len(kept))
        y_hat, active = torch.empty_like(y), torch.empty(len(y), dtype=torch.int64, device=y.device)
        for where in (row, ~row):
            if not bool(where.any()):
                continue
            at, its = scale[where], y[where]
            result = reconstruct(subject, x[where], at, position[where], its)
            y_hat[where], active[where] = result.x_hat.to(y_hat.dtype), result.active.to(y.device)
            if where is row:
                mine.density.update(result.fired, len(at))
                mine.own.update(result.z, result.z_hat)
                for name, into in self.chains[subject.name].items():
                    mine.quality[name].update(into(its, at), into(result.x_hat, at))
        mine.update(y, y_hat, active, position, row)
        return y_hat.view(*kept.shape, -1)

    def finish(self, ultra_rare_below: float, dense_above: float) -> dict[str, dict[str, Any]]:
        """By dictionary, see `SubjectSums.finish`."""
        return {
            s.name: self.sums[s.name].finish(
                s,
                self.original,
                self.sites[ablation_site(self.model, s.written_site).name],
                ultra_rare_below,
                dense_above,
            )
            for s in self.subjects
        }


def ablated_sites(model: LanguageModel, subjects: list[Subject]) -> list[Site]:
    """Where ablations are made for these dictionaries, each site once."""
    sites = [ablation_site(model, subject.written_site) for subject in subjects]
    return list({site.name: site for site in sites}.values())


def contexts_at_a_time(model: LanguageModel, length: int) -> int:
    """As many contexts as the bound on one tensor of logits allows."""
    return max(1, min(LOGIT_BYTES // (4 * model.d_vocab * length), 64))


def evaluate(
    model: LanguageModel,
    subjects: list[Subject],
    batches: Batches,
    rows: RowsConfig,
    *,
    length: int,
    seed: int,
    ultra_rare_below: float,
    dense_above: float,
    progress: Counted = lambda tokens: None,
) -> dict[str, dict[str, Any]]:
    """Every figure of every dictionary by name, JSON-able but for NaN. `batches` is called twice: means come first.

    progress: called with the number of rows counted so far.
    """
    means = site_means(model, ablated_sites(model, subjects), batches(), rows, wanted=2**63)
    evaluation = Evaluation.start(model, subjects, rows, length, means, seed)
    counted = 0
    for contexts in batches():
        evaluation.update(contexts)
        counted += int(kept_positions(contexts.tokens, rows, model.special_token_ids).sum())
        progress(counted)
    return evaluation.finish(ultra_rare_below, dense_above)
