"""The held-out figures of `analysis/fidelity.json`, with what each of them means."""

from __future__ import annotations

from typing import Any

from sae_tools.report.contents import Contents

DEFINITIONS = {
    "tokens": "Held-out tokens on which everything here was measured.",
    "l0": "Features above 0 per token, on average.",
    "fvu_trained": "Share of the variance that the reconstruction leaves unexplained, in the very coordinates of "
    "training; 0 is perfect.",
    "fvu": "Share of the variance left unexplained in each space that the reconstruction maps forward to; in the "
    "logits' space with the final norm's scale at each token.",
    "ce": "Next-token cross-entropy in nats: of the model as it is, with the reconstruction spliced in, and with the "
    "site's output set to zero or to its mean.",
    "ablation_cost": "Nats per token that the ablation costs: what there is to give back.",
    "ce_recovered": "Share of the ablation's cost that splicing the reconstruction in gives back; 1 is perfect. Zero "
    "ablation takes away more than the information, so the mean is the baseline to read first.",
    "kl": "KL divergence of the spliced model's predictions from the model's own, in nats per token.",
    "dead": "Features that fired on no held-out token.",
    "ultra_rare": "Features that fired, but on less than {ultra_rare:g} of the held-out tokens.",
    "dense": "Features that fired on more than {dense:g} of the held-out tokens.",
    "training_tokens": "Tokens that the dictionary was trained on.",
    "text_passes": "How often the training text was begun; above 1, tokens repeat.",
    "tokens_per_s": "Tokens trained on per second over the whole job, all its dictionaries together.",
}


def report(contents: Contents) -> dict[str, Any]:
    """`entries`: by dictionary what fidelity.json holds, null where there is none. `definitions`: a sentence by key."""
    thresholds = contents.dictionaries[0].thresholds
    words = {"ultra_rare": thresholds.ultra_rare_below, "dense": thresholds.dense_above}
    return {
        "entries": {shown.id: shown.fidelity for shown in contents.dictionaries},
        "definitions": {key: sentence.format(**words) for key, sentence in DEFINITIONS.items()},
    }
