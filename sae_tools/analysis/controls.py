"""Controls of an evaluation: what must come out as known, and what comes out of a model that has learnt nothing.

- `identity`: a dictionary that gives back what it reads, at the dictionary's own sites. CE and KL recovered are 1.
- `silent`: one that outputs nothing, at the ablated site. It is zero ablation.
- `shuffled_weights`: the dictionary itself on the same text, of a model whose weight matrices have their entries in a
  random order (models/shuffle.py). What it still explains there is owed to norms, biases and the size of weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_tools.analysis.coordinates import identity_space
from sae_tools.analysis.evaluation_pass import Batches, Counted, ablated_sites, evaluate
from sae_tools.analysis.fidelity import ablation_site
from sae_tools.analysis.subject import Subject
from sae_tools.config import RowsConfig
from sae_tools.config_eval import EvalConfig
from sae_tools.dictionaries import Dictionary
from sae_tools.models.load import LanguageModel
from sae_tools.models.shuffle import shuffled_weights
from sae_tools.models.sites import Site

SHOWN = (
    "tokens", "l0", "fvu", "reconstruction", "ce", "ablation_cost", "ce_recovered", "kl", "kl_ablated", "kl_recovered",
)  # fmt: skip
"""Figures of an entry that are kept of the shuffled model's."""


class Known(Dictionary):
    """What a control's dictionary has in common: no weights of the size of others', whatever the width."""

    unit_decoder = False

    def __init__(self, width: int, features: int):
        nn.Module.__init__(self)
        self.width, self.features = width, features
        self.b_dec = nn.Parameter(torch.zeros(width), requires_grad=False)

    @property
    def d_in(self) -> int:
        return self.width

    @property
    def d_out(self) -> int:
        return self.width

    @property
    def d_sae(self) -> int:
        return self.features

    def select(self, centred: Tensor, dead: Tensor | None) -> None:
        raise NotImplementedError("a control is not trained")

    def objective(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a control is not trained")


class Identity(Known):
    """Two features for each coordinate, its positive and its negative part: x̂ = x to the last bit."""

    def __init__(self, width: int):
        super().__init__(width, 2 * width)

    def encode(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_sae"]:
        return torch.cat([x.relu(), (-x).relu()], 1)

    def decode(self, f: Any, x: Tensor | None = None) -> Float[Tensor, "rows d"]:
        return f[:, : self.width] - f[:, self.width :]


class Silent(Known):
    """One feature, which never fires."""

    def __init__(self, width: int):
        super().__init__(width, 1)

    def encode(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows one"]:
        return x.new_zeros(len(x), 1)

    def decode(self, f: Any, x: Tensor | None = None) -> Float[Tensor, "rows d"]:
        return f.new_zeros(len(f), self.width)


def measure_controls(
    model: LanguageModel,
    subjects: list[Subject],
    batches: Batches,
    rows: RowsConfig,
    cfg: EvalConfig,
    *,
    length: int,
    progress: Counted = lambda tokens: None,
) -> dict[str, dict[str, Any]]:
    """By dictionary: `identity`, `silent` and `shuffled_weights`, each with its `tokens`; JSON-able but for NaN."""

    def run(these: list[Subject], before: int) -> dict[str, dict[str, Any]]:
        return evaluate(
            model,
            these,
            batches,
            rows,
            length=length,
            seed=cfg.seed,
            ultra_rare_below=cfg.ultra_rare_below,
            dense_above=cfg.dense_above,
            progress=lambda tokens: progress(before + tokens),
        )

    tokens = 0

    def remember(counted: int) -> None:
        nonlocal tokens
        tokens = counted
        progress(counted)

    written = {subject.written_site.name: subject.written_site for subject in subjects}
    ablated = ablated_sites(model, subjects)
    known = [at_site(model, "identity", site) for site in written.values()]
    known += [at_site(model, "silent", site) for site in ablated]
    found = evaluate(
        model,
        known,
        batches,
        rows,
        length=length,
        seed=cfg.seed,
        ultra_rare_below=cfg.ultra_rare_below,
        dense_above=cfg.dense_above,
        progress=remember,
    )
    with shuffled_weights(model, cfg.seed):
        shuffled = run(subjects, tokens)
    out = {}
    for subject in subjects:
        site = ablation_site(model, subject.written_site)
        out[subject.name] = {
            "identity": identity_result(found[f"identity {subject.written_site.name}"]),
            "silent": silent_result(found[f"silent {site.name}"]),
            "shuffled_weights": {key: shuffled[subject.name][key] for key in SHOWN},
        }
    return out


def at_site(model: LanguageModel, kind: str, site: Site) -> Subject:
    """A control in the site's own coordinates."""
    dictionary = Identity(site.width) if kind == "identity" else Silent(site.width)
    space = identity_space(site, model, {}).to(model.device)
    return Subject(f"{kind} {site.name}", site, space, dictionary.to(model.device))


def identity_result(entry: dict[str, Any]) -> dict[str, Any]:
    shown = {key: entry[key] for key in ("tokens", "ce_recovered", "kl", "kl_recovered", "fvu")}
    ones = [*entry["ce_recovered"].values(), *entry["kl_recovered"].values()]
    return {**shown, "site": entry["site"], "as_known": all(one == 1 or math.isnan(one) for one in ones)}


def silent_result(entry: dict[str, Any]) -> dict[str, Any]:
    ce, zero = entry["ce"]["reconstruction"], entry["ce"]["zero"]
    same = ce == zero and entry["kl"] == entry["kl_ablated"]["zero"]
    return {"tokens": entry["tokens"], "site": entry["site"], "ce": ce, "ce_zero": zero, "as_known": same}
