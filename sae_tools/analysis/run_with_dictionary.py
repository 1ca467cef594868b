"""A language model run with a dictionary in it, spliced, ablated or steered: for notebooks, everything in memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sae_tools.analysis.coordinates import saved_spaces, spaces_at_sites
from sae_tools.analysis.splicing import put_at, splice
from sae_tools.analysis.subject import Subject, kept_positions
from sae_tools.config import FidelityConfig, RowsConfig
from sae_tools.dictionaries import Dictionary
from sae_tools.dictionaries.formats.read import read_dictionary
from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.intervene import logits_with_edits, run_and_capture
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts

AnyModel = str | Path | TransformerBridge | LanguageModel
AnyDictionary = str | Path | Dictionary | Subject
Tokens = str | list[int] | Int[Tensor, "batch position"] | Int[Tensor, " position"]


class DictionaryRun(NamedTuple):
    """What came of `run_with_dictionary`."""

    logits: Float[Tensor, "batch position vocab"]
    """Of the run with the dictionary in it, in the model's dtype."""
    features: Tensor
    """[batch, position, d_sae]: activations on the unedited model, 0 at tokens that the dictionary does not read;
    dense, or sparse COO. In the dictionary's own unit: `decoder_norms` says what 1 adds."""
    reconstruction: Float[Tensor, "batch position d_site"]
    """At the site that it writes, made of the activations as edited; the model's own at all other tokens. Of a
    `Subject`, what its space cannot see is the model's own too."""
    loss: Float[Tensor, "batch predicted"]
    """-log p(next token) in nats; the last position has no next token."""
    tokens: Int[Tensor, "batch position"]
    """As they were run."""
    read: Bool[Tensor, "batch position"]
    """Tokens at which the dictionary reads and writes."""


@torch.no_grad()
def run_with_dictionary(
    model: AnyModel,
    dictionary: AnyDictionary,
    tokens: Tokens,
    site: str | None = None,
    *,
    writes: str | None = None,
    splice: bool = True,
    ablate: Collection[int] = (),
    steer: Mapping[int, float] | None = None,
    multiply: Mapping[int, float] | None = None,
    keep_error: bool | None = None,
    rows: RowsConfig | None = None,
    where: Bool[Tensor, "batch position"] | None = None,
    sparse: bool = False,
) -> DictionaryRun:
    """Run the model with the dictionary's reconstruction, or with some of its features changed.

        run = run_with_dictionary(model, sae, "def area(", ablate=[12], steer={7: 30.0})
        run.logits, run.features[0, -1].topk(5), run.loss.mean()

    model: anything that `load_model` takes. dictionary: one in memory on the activations of a site (`load_dictionary`,
        `train`), a `Subject` with its space, or a path. A checkpoint of ours is its export, on the activations of the
        site: of what its space cannot see (with `logit_update` and LayerNorm the mean over channels, which no logit
        depends on) its reconstruction has the mean of the training text, where that of a `Subject` in the space keeps
        the activations' own. So the two reconstructions differ by that part, and logits agree.
    tokens: ids [batch, position] or [position], or a text, which gets BOS in front.
    site: where it reads; None: what its metadata says. writes: where its reconstruction belongs, for one that reads
        elsewhere (None: its metadata, or the site).
    splice: put the result into the model; False: only encode, logits and loss are the model's own.
    ablate: features whose activations become 0. steer: activations are set to a value, at every token, whether the
        feature fires or not. multiply: activations are multiplied.
    keep_error: what the dictionary misses of the activations stays: they change by Σ (f'_i - f_i) d_i and nothing else,
        as features are pinned in 'Towards Monosemanticity' (with nothing changed the model is as it was). False: they
        become the reconstruction of what is left. None: kept where features are changed, else not.
    rows: which tokens it reads (None: as its metadata says, else not the first position and no special tokens); what is
        left out keeps its activations. where: instead of that, these tokens.
    sparse: features as a sparse tensor.

    Raises UserError for a site, feature or combination that makes no sense.
    """
    language_model = load_model(model)
    subject = as_subject(language_model, dictionary, site, writes)
    changes = _changes(subject, ablate, steer or {}, multiply or {})
    if changes and not splice:
        raise UserError("splice=False leaves the model as it is, so no features can be ablated, steered or multiplied.")
    keep_error = bool(changes) if keep_error is None else keep_error
    ids = token_ids(language_model, tokens)
    if where is None:
        rows = rows or rows_of(subject.dictionary.metadata)
        where = kept_positions(ids, rows, language_model.special_token_ids)
    elif not isinstance(where, Tensor) or where.dtype != torch.bool or where.shape != ids.shape:
        raise UserError(f"where must be a tensor of booleans of shape {list(ids.shape)}, one for each of the tokens.")
    where = where.to(ids.device)
    norm = FinalNorm.of(language_model) if any(s.ln == "token" for s in (subject.space, subject.written)) else None
    final = resolve_site(language_model, f"resid_post@{language_model.n_layers - 1}")
    clean = run_and_capture(language_model, ids, [*subject.sites, *([] if norm is None else [final])])

    home, device = ids.device, subject.dictionary.b_dec.device
    position = torch.arange(ids.shape[1], device=home).expand_as(ids)[where].to(device)
    scale = None if norm is None else norm.scale(clean.activations[final.name][where]).squeeze(-1).to(device)
    x = subject.space.forward(clean.activations[subject.site.name][where].to(device).float(), scale, position)
    y = clean.activations[subject.written_site.name][where].to(device).float()
    f = subject.dictionary.encode(x)
    edited = f.clone()
    for feature, change in changes.items():
        edited[:, feature] = change(edited[:, feature])

    def lifted(f: Tensor) -> Tensor:
        return subject.written.lift(subject.dictionary.decode(f, x), scale, position, y)

    x_hat = lifted(edited)
    logits = clean.logits
    if splice:
        put = y + (x_hat - lifted(f)) if keep_error else x_hat
        logits = logits_with_edits(
            language_model, ids, [_splice(subject.written_site, where, put.to(home))], prefix=clean.prefix
        )
    log_probs = logits.float().log_softmax(-1)
    loss = -log_probs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    reconstruction = put_at(where, x_hat.to(home))(clean.activations[subject.written_site.name].float())
    return DictionaryRun(logits, _spread(f.to(home), where, sparse), reconstruction, loss, ids, where)


_splice = splice  # the function, in a function that has an argument of that name


def as_subject(
    model: LanguageModel, dictionary: AnyDictionary, site: str | None = None, writes: str | None = None
) -> Subject:
    """A dictionary in the coordinates that it acts in: a `Subject` as it is, else at its site.

    site, writes: as in `run_with_dictionary`. Raises UserError where nobody says the site, or where it does not fit.
    """
    if isinstance(dictionary, Subject):
        if site is not None or writes is not None:
            raise UserError("a Subject knows its own sites: leave site and writes out.")
        return dictionary
    if isinstance(dictionary, Dictionary):
        if dictionary.metadata.get("coordinates") == "space":
            raise UserError("the dictionary acts in a space that is not at hand: give its folder, or a Subject.")
    else:
        path = Path(dictionary)
        dictionary, metadata = read_dictionary(dictionary)
        if metadata.get("coordinates") == "space" and (saved := saved_spaces(path, metadata)) is not None:
            return saved.subject("dictionary", dictionary)
    spaces = spaces_at_sites(model, dictionary, dictionary.metadata, site, writes, "the dictionary")
    return spaces.subject("dictionary", dictionary)


def measure_dictionary(
    model: AnyModel,
    dictionary: AnyDictionary,
    tokens: Int[Tensor, "contexts position"],
    site: str | None = None,
    *,
    writes: str | None = None,
    rows: RowsConfig | None = None,
) -> dict[str, Any]:
    """The figures of `analysis/fidelity.json` for one dictionary on these contexts of tokens: FVU in every space, CE
    and KL spliced in and ablated, L0, dead and dense features (definitions: analysis/fidelity.py)."""
    from sae_tools.analysis.fidelity import measure_fidelity

    language_model = load_model(model)
    subject = as_subject(language_model, dictionary, site, writes)
    tokens = token_ids(language_model, tokens)
    rows = rows or rows_of(subject.dictionary.metadata)
    cfg = FidelityConfig(tokens=tokens.numel())

    def batches():
        for part in tokens.split(8):
            yield Contexts(part, torch.zeros_like(part))

    return measure_fidelity(language_model, [subject], batches, rows, cfg)[subject.name]


def token_ids(model: LanguageModel, tokens: Tokens) -> Int[Tensor, "batch position"]:
    """On the model's device. UserError for what is not that, or outside the vocabulary."""
    if isinstance(tokens, str):
        if model.tokenizer is None:
            raise UserError(f"{model.name} has no tokenizer: give token ids.")
        ids = model.tokenizer(tokens, add_special_tokens=False)["input_ids"]
        tokens = ids if model.bos_token_id is None else [model.bos_token_id, *ids]
    try:
        tensor = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            "tokens are one text, or ids [batch, position] with contexts of one length; run several texts one by one."
        ) from None
    tensor = tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
    if tensor.dim() != 2 or tensor.is_floating_point() or not tensor.numel():
        raise UserError(f"tokens are ids [batch, position], and these have shape {list(tensor.shape)}.")
    if int(tensor.min()) < 0 or int(tensor.max()) >= model.d_vocab:
        raise UserError(f"a token id is outside the vocabulary of {model.name} (0 to {model.d_vocab - 1}).")
    if tensor.shape[1] > model.n_ctx:
        raise UserError(f"{tensor.shape[1]} tokens are more than the {model.n_ctx} that {model.name} reads at most.")
    return tensor.long().to(model.device)


def rows_of(metadata: dict[str, Any]) -> RowsConfig:
    """Which tokens a dictionary reads, as its file says; the defaults where it says nothing usable."""
    said: dict[str, Any] = {}
    if type(metadata.get("skip_positions")) is int and metadata["skip_positions"] >= 0:
        said["skip_positions"] = metadata["skip_positions"]
    if isinstance(metadata.get("skip_special"), bool):
        said["skip_special"] = metadata["skip_special"]
    return RowsConfig(**said)


def _changes(
    subject: Subject, ablate: Collection[int], steer: Mapping[int, float], multiply: Mapping[int, float]
) -> dict[int, Any]:
    """By feature: from its activations to others."""
    for name, mapping in (("steer", steer), ("multiply", multiply)):
        if not isinstance(mapping, Mapping):
            raise UserError(f"{name} is a mapping {{feature: number}}, and no {type(mapping).__name__}.")
        for feature, value in mapping.items():
            if not isinstance(value, SupportsFloat) or not math.isfinite(value):
                raise UserError(f"{name}: feature {feature} gets {str(value)[:50]!r}, which is no finite number.")
    if not isinstance(ablate, Iterable) or isinstance(ablate, str):
        raise UserError(f"ablate is a list of features, and no {type(ablate).__name__}.")
    changes: dict[int, Any] = {}
    wanted = [(i, lambda f: torch.zeros_like(f)) for i in ablate]
    wanted += [(i, lambda f, value=value: torch.full_like(f, value)) for i, value in steer.items()]
    wanted += [(i, lambda f, factor=factor: f * factor) for i, factor in multiply.items()]
    for feature, change in wanted:
        if not isinstance(feature, SupportsIndex) or not 0 <= int(feature) < subject.dictionary.d_sae:
            raise UserError(f"there is no feature {feature}: they are 0 to {subject.dictionary.d_sae - 1}.")
        if int(feature) in changes:
            raise UserError(f"feature {feature} is to be changed twice.")
        changes[int(feature)] = change
    return changes


def _spread(f: Float[Tensor, "rows d_sae"], where: Bool[Tensor, "batch position"], sparse: bool) -> Tensor:
    shape = (*where.shape, f.shape[1])
    if not sparse:
        return f.new_zeros(shape).masked_scatter_(where.unsqueeze(-1), f)
    row, feature = f.nonzero(as_tuple=True)
    batch, position = where.nonzero(as_tuple=True)
    index = torch.stack([batch[row], position[row], feature])
    return torch.sparse_coo_tensor(index, f[row, feature], shape, is_coalesced=True, check_invariants=False)
