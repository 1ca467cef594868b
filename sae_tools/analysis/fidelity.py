"""How faithful dictionaries are, on held-out text: to the activations they read and to what the model then says.

Every dictionary of a job is measured on the same tokens. Definitions, all over tokens that become rows (`RowsConfig`):

- `fvu`: variance unexplained (`VarianceUnexplained`), in the dictionary's own space and in every space that its
  reconstruction maps forward to; of a two-site dictionary the space that it writes, and from there. `logit_update` is
  measured with the final norm's scale at each token, whatever the dictionary was trained with; `fvu_trained` is the
  figure in the very coordinates of training. Splicing and ablation are at the site that is written.
- `ce`: next-token cross-entropy in nats of the model as it is, with the reconstruction spliced in at those tokens, and
  with the site's output ablated at those tokens: set to zero, or to its mean over held-out tokens. For dictionaries on
  an MLP's hidden activations the ablated output is the MLP's, so that all spaces of one MLP share their baselines.
- `ce_recovered`: (ablation - reconstruction) / (ablation - original) for each baseline. Zero ablation takes away
  more than the information (a mean that the model may rely on), so read `mean` first.
- `kl`: KL(original ‖ reconstruction spliced in), nats per token.
- `reconstruction`: more figures in the site's own coordinates, see `ReconstructionQuality.finish`.
- `alive`, `dead`, `ultra_rare`, `dense`: see `FiringCounts.finish`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.analysis.behaviour import NextTokenLoss, log_softmax, recovered
from sae_tools.analysis.density import FiringCounts
from sae_tools.analysis.reconstruction import ReconstructionQuality, VarianceUnexplained
from sae_tools.analysis.splicing import splice
from sae_tools.analysis.subject import Subject, kept_positions, reconstruct
from sae_tools.config import FidelityConfig, RowsConfig
from sae_tools.memory import release_freed_memory
from sae_tools.models.capture import capture
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.intervene import (
    Edit,
    logits_with_edits,
    mean_ablate,
    run_and_capture,
    zero_ablate,
)
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import Site, resolve_site
from sae_tools.rows import Contexts
from sae_tools.spaces import forward_chain, logit_root

LOGIT_BYTES = 64 * 2**20
"""Bound on one tensor of logits; decides how many contexts are evaluated at a time."""


def contexts_per_batch(model: LanguageModel, context_length: int, tokens: int) -> int:
    """As many contexts as the bound on logits allows, and no more than `tokens` tokens need."""
    return max(1, min(LOGIT_BYTES // (4 * model.d_vocab * context_length), math.ceil(tokens / context_length), 64))


@dataclass
class SubjectSums:
    """Accumulators of one dictionary."""

    density: FiringCounts
    spaces: dict[str, VarianceUnexplained]
    """By measuring space (`forward_chain`)."""
    own: VarianceUnexplained = field(default_factory=VarianceUnexplained)
    """In the very coordinates that it was trained in."""
    site: ReconstructionQuality = field(default_factory=ReconstructionQuality)
    """In the site's own."""
    spliced: NextTokenLoss = field(default_factory=NextTokenLoss)

    @staticmethod
    def of(subject: Subject, spaces: list[str]) -> SubjectSums:
        return SubjectSums(FiringCounts(subject.dictionary.d_sae), {name: VarianceUnexplained() for name in spaces})


@dataclass
class AblationSums:
    """Accumulators of one site's ablations."""

    site: Site
    mean: Float[Tensor, " d_site"]
    zeroed: NextTokenLoss = field(default_factory=NextTokenLoss)
    mean_ablated: NextTokenLoss = field(default_factory=NextTokenLoss)


@torch.no_grad()
def measure_fidelity(
    model: LanguageModel,
    subjects: list[Subject],
    batches: Callable[[], Iterable[Contexts]],
    rows: RowsConfig,
    cfg: FidelityConfig,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, dict[str, Any]]:
    """The figures described at the top of this file, by dictionary name; JSON-able.

    batches: starts the held-out contexts from their beginning; whole contexts are read until `cfg.tokens` tokens
        are counted or they run out. Called twice: once for the means.
    progress: called with the number of tokens counted so far.
    """
    norm = FinalNorm.of(model)
    final = resolve_site(model, f"resid_post@{model.n_layers - 1}")
    ablated = {subject.name: ablation_site(model, subject.written_site) for subject in subjects}
    means = site_means(model, list(ablated.values()), batches(), rows, cfg.tokens)
    ablations = {site.name: AblationSums(site, means[site.name]) for site in ablated.values()}
    direct = any(subject.written.kind in ("mlp_acts", "resid_update", "logit_update") for subject in subjects)
    root = logit_root(model) if direct else None  # once for all
    chains = {subject.name: forward_chain(subject.written, model, root=root) for subject in subjects}
    sums = {s.name: SubjectSums.of(s, list(chains[s.name])) for s in subjects}
    read = [site for subject in subjects for site in subject.sites]
    sites = list({s.name: s for s in (*read, *ablated.values(), final)}.values())
    original = NextTokenLoss()
    counted = 0
    for contexts in batches():
        enough = math.ceil((cfg.tokens - counted) / max(1, contexts.tokens.shape[1] - rows.skip_positions))
        tokens = contexts.tokens[:enough].to(model.device)
        kept = kept_positions(tokens, rows, model.special_token_ids)
        clean = run_and_capture(model, tokens, sites)
        reference, activations, prefix = log_softmax(clean.logits), clean.activations, clean.prefix
        del clean  # tensors the size of its logits are most of the memory that this takes
        scale = norm.scale(activations[final.name][kept]).squeeze(-1)
        position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)[kept]
        original.update(reference, reference, tokens, kept)

        def edited(edit: Edit, into: NextTokenLoss, tokens=tokens, kept=kept, prefix=prefix, reference=reference):
            into.update(log_softmax(logits_with_edits(model, tokens, [edit], prefix=prefix)), reference, tokens, kept)

        for subject in subjects:
            x = activations[subject.site.name][kept].float()
            y = x if subject.target_space is None else activations[subject.written_site.name][kept].float()
            result = reconstruct(subject, x, scale, position, y)
            mine = sums[subject.name]
            mine.density.update(result.fired, len(x))
            mine.own.update(result.z, result.z_hat)
            mine.site.update(y, result.x_hat)
            for name, into_space in chains[subject.name].items():
                mine.spaces[name].update(into_space(y, scale), into_space(result.x_hat, scale))
            edited(splice(subject.written_site, kept, result.x_hat), mine.spliced)
        for ablation in ablations.values():
            edited(zero_ablate(ablation.site, where=kept), ablation.zeroed)
            edited(mean_ablate(ablation.site, ablation.mean, where=kept), ablation.mean_ablated)
        counted += int(kept.sum())
        release_freed_memory()  # tensors of many sizes, whose holes would add up from batch to batch
        progress(counted)
        if counted >= cfg.tokens:
            break
    return {s.name: finish(s, sums[s.name], original, ablations[ablated[s.name].name], cfg) for s in subjects}


def ablation_site(model: LanguageModel, site: Site) -> Site:
    """Where a dictionary's baselines are taken: the MLP's output for its hidden activations, else its own site."""
    return resolve_site(model, f"mlp_out@{site.layer}") if site.kind == "mlp_acts" else site


def site_means(
    model: LanguageModel, sites: list[Site], batches: Iterable[Contexts], rows: RowsConfig, wanted: int
) -> dict[str, Float[Tensor, " d_site"]]:
    """Mean activation of each site, by its name, over the first `wanted` tokens (or a few more) that become rows."""
    unique = {site.name: site for site in sites}
    totals = {name: torch.zeros(site.width, dtype=torch.float64) for name, site in unique.items()}
    counted = 0
    for contexts in batches:
        tokens = contexts.tokens.to(model.device)
        kept = kept_positions(tokens, rows, model.special_token_ids)
        found = capture(model, tokens, [site.hook_name for site in unique.values()])
        for name, site in unique.items():
            totals[name] += found[site.hook_name][kept].double().sum(0).cpu()
        counted += int(kept.sum())
        if counted >= wanted:
            break
    return {name: (total / max(counted, 1)).float().to(model.device) for name, total in totals.items()}


def finish(
    subject: Subject,
    sums: SubjectSums,
    original: NextTokenLoss,
    ablation: AblationSums,
    cfg: FidelityConfig,
) -> dict[str, Any]:
    """One dictionary's entry of fidelity.json."""
    ce_original, _ = original.finish()
    ce_reconstruction, kl = sums.spliced.finish()
    (zero, kl_zero), (mean, kl_mean) = ablation.zeroed.finish(), ablation.mean_ablated.finish()
    return {
        "site": subject.site.name,
        "space": subject.space.kind,
        "writes": None
        if subject.target_space is None
        else {"site": subject.written_site.name, "space": subject.target_space.kind},
        "d_sae": subject.dictionary.d_sae,
        "tokens": sums.density.tokens,
        "predictions": original.tokens,
        "fvu_trained": sums.own.finish(),
        "fvu": {name: fvu.finish() for name, fvu in sums.spaces.items()},
        "reconstruction": sums.site.finish(),
        "ce": {"original": ce_original, "reconstruction": ce_reconstruction, "zero": zero, "mean": mean},
        "ablated_site": ablation.site.name,
        "ablation_cost": {"zero": zero - ce_original, "mean": mean - ce_original},
        "ce_recovered": {
            "zero": recovered(ce_reconstruction, zero, ce_original),
            "mean": recovered(ce_reconstruction, mean, ce_original),
        },
        "kl": kl,
        "kl_ablated": {"zero": kl_zero, "mean": kl_mean},
        **sums.density.finish(cfg.ultra_rare_below, cfg.dense_above),
    }
