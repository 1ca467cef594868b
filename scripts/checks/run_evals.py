"""Whether `sae-eval` agrees with SAELens's `run_evals` on the same dictionary, model and tokens.

    .venv/bin/python scripts/checks/run_evals.py runs/quickstart --contexts 32

Every exported checkpoint of the run (or the SAE's folder) is loaded by SAELens and by us, and measured on the same
held-out contexts, once with all tokens and once without special ones. Both sides have float32 and the same weights;
ours runs the plain Hugging Face view with fused attention, SAELens the bridge. Figures of one definition must agree to
1e-3 (relative, or absolute where they are below 1); exits with 1 if any does not. Where `sae-eval` by default has
another definition, that is printed with its reason.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_tools.analysis.controls import at_site
from sae_tools.analysis.coordinates import identity_space
from sae_tools.analysis.corpus import read_corpus
from sae_tools.analysis.evaluation_pass import evaluate
from sae_tools.analysis.sources import open_sources
from sae_tools.analysis.subject import Subject
from sae_tools.config import RowsConfig
from sae_tools.config_eval import EvalConfig
from sae_tools.dictionaries.formats import read_dictionary
from sae_tools.models.load import LanguageModel
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts

TOLERANCE = 1e-3


class Line(NamedTuple):
    figure: str
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        return abs(self.ours - self.theirs) / max(1.0, abs(self.theirs))

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE


def saelens_figures(model: LanguageModel, folder: Path, tokens: Tensor, batch: int, special: bool) -> dict[str, float]:
    """SAELens's figures by its own names. `run_evals` takes other tokens for each half of its figures, so it is called
    once for each, with a store that begins with the same contexts."""
    import datasets
    from sae_lens import SAE, ActivationsStore
    from sae_lens.evals import EvalConfig as SAELensConfig
    from sae_lens.evals import run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = SAE.load_from_disk(str(folder))
    rows = datasets.Dataset.from_list([{"tokens": row} for row in tokens.tolist()])
    batches = len(tokens) // batch
    halves: list[dict[str, Any]] = [
        {"compute_kl": True, "compute_ce_loss": True, "n_eval_reconstruction_batches": batches},
        {
            "compute_l2_norms": True,
            "compute_sparsity_metrics": True,
            "compute_variance_metrics": True,
            "n_eval_sparsity_variance_batches": batches,
        },
    ]
    found: dict[str, float] = {}
    for half in halves:
        store = ActivationsStore.from_sae(
            model=model.bridge,  # type: ignore[arg-type]
            sae=sae,
            dataset=rows,
            streaming=False,
            context_size=tokens.shape[1],
            store_batch_size_prompts=batch,
            n_batches_in_buffer=2,
            device="cpu",
        )
        metrics, _ = run_evals(
            sae,
            store,
            model.bridge,  # type: ignore[arg-type]
            activation_scaler=ActivationScaler(),
            eval_config=SAELensConfig(batch_size_prompts=batch, **half),
            exclude_special_tokens=False if special else list(model.special_token_ids),
        )
        found |= {key: value for group in metrics.values() for key, value in group.items()}
    return found


def our_figures(
    model: LanguageModel, folder: Path, site_name: str, tokens: Tensor, batch: int, special: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the dictionary's entry, the entry of one that outputs nothing at its site: SAELens's ablation)."""
    dictionary, _ = read_dictionary(folder)
    site = resolve_site(model, site_name)
    subject = Subject("sae", site, identity_space(site, model, {}), dictionary.requires_grad_(False))
    silent = at_site(model, "silent", site)
    found = evaluate(
        model,
        [subject, silent],
        lambda: (Contexts(part, torch.zeros_like(part)) for part in tokens.split(batch)),
        RowsConfig(skip_positions=0, skip_special=not special),
        length=tokens.shape[1],
        seed=0,
        ultra_rare_below=1e-4,
        dense_above=0.1,
    )
    return found["sae"], found[silent.name]


def compare(
    model: LanguageModel, folder: Path, site_name: str, tokens: Tensor, batch: int, special: bool
) -> Iterator[Line]:
    """Figures that have one definition, on these contexts (a whole number of batches).

    special: whether special tokens count. SAELens then leaves them as they are, and out of all means; its ablation is
    made at every token all the same. Its KL counts the last position of a context, whose prediction nothing follows.
    """
    if len(tokens) % batch:
        raise ValueError("a whole number of batches is needed")
    theirs = saelens_figures(model, folder, tokens, batch, special)
    ours, silent = our_figures(model, folder, site_name, tokens, batch, special)
    zero = silent if special else silent["with_bos"]["edited_all_counted_rows"]
    ce, ablated = ours["ce"], zero["ce"]["reconstruction"]
    kl, kl_ablated = ours["kl_every_position"], zero["kl_every_position"]
    site = ours["reconstruction"]["site"]
    yield Line("CE, original", ce["original"], theirs["ce_loss_without_sae"])
    yield Line("CE, reconstruction", ce["reconstruction"], theirs["ce_loss_with_sae"])
    yield Line("CE, zero ablation", ablated, theirs["ce_loss_with_ablation"])
    yield Line("CE recovered", (ablated - ce["reconstruction"]) / (ablated - ce["original"]), theirs["ce_loss_score"])
    yield Line("KL, reconstruction", kl, theirs["kl_div_with_sae"])
    yield Line("KL, zero ablation", kl_ablated, theirs["kl_div_with_ablation"])
    yield Line("KL recovered", 1 - kl / kl_ablated, theirs["kl_div_score"])
    yield Line("explained variance", site["ev_centred"], theirs["explained_variance"])
    yield Line("its legacy variant", site["ev_legacy"], theirs["explained_variance_legacy"])
    yield Line("mse", site["mse"], theirs["mse"])
    yield Line("cosine", site["cosine"], theirs["cossim"])
    yield Line("l2 ratio", site["l2_ratio"], theirs["l2_ratio"])
    yield Line("relative bias", site["relative_bias"], theirs["relative_reconstruction_bias"])
    yield Line("L0", ours["l0"], theirs["l0"])


DIFFERENCES = """
Where sae-eval's figures are others by default, and why:
- Rows: it leaves out what training leaves out (position 0 and special tokens), in edits and in predictions; run_evals
  leaves out special tokens unless told otherwise, and makes its ablation at them all the same. Both choices are in
  evaluation.json under with_bos.
- Ablation: of a dictionary on an MLP's hidden activations it ablates the MLP's output, so that all spaces of one MLP
  share their baselines; run_evals zeroes the activations themselves, which leaves the output's bias. Compared here is
  a dictionary that outputs nothing.
- KL: over the positions that predict a token; run_evals adds the last position (kl_every_position, compared here).
- Relative bias: one ratio over all tokens; run_evals has the mean of its batches' ratios.
- ev_legacy depends on the batch; here both sides have the same batches.
- A logit_update dictionary is compared as its folded export, which fills in what its space cannot see by a mean;
  sae-eval keeps the original's.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("path", type=Path, help="a run, or an SAE's folder")
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="contexts in a batch")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    wanted = arguments.contexts // arguments.batch * arguments.batch
    bad = 0
    for group in open_sources([arguments.path], EvalConfig(device="cpu")):
        corpus = read_corpus(group.model, group.data, group.rows, wanted * group.data.context_length)
        tokens = corpus.tokens[:wanted].long()
        tokens = tokens[: len(tokens) // arguments.batch * arguments.batch]
        for source in group.sources:
            if source.metadata.get("coordinates") == "space" or source.subject.target_space is not None:
                print(f"{source.id}: its export is no SAE in the coordinates of one site, which run_evals needs.")
                continue
            for special in (True, False):
                counted = "all tokens" if special else "without special tokens"
                print(f"{source.id}, {tokens.numel():,} tokens, {counted}")
                site = source.subject.site.name
                for line in compare(group.model, source.path, site, tokens, arguments.batch, special):
                    mark = "" if line.agrees else "   DIFFERS"
                    print(f"  {line.figure:<22}{line.ours:>14.6f}{line.theirs:>14.6f}{line.difference:>11.1e}{mark}")
                    bad += not line.agrees
    print(DIFFERENCES)
    print(f"{bad} figures differ by more than {TOLERANCE:g}." if bad else f"All agree to {TOLERANCE:g}.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
