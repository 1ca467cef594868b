"""Small dictionaries on random models, in every space, with a corpus and examples, for the tests of the analyses."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.directions import unit_norms
from sae_tools.analysis.examples import Examples
from sae_tools.analysis.subject import Subject, kept_positions
from sae_tools.config import DictionaryConfig, ReLUConfig, RowsConfig, SpaceConfig, TopKConfig
from sae_tools.config_report import ReportConfig
from sae_tools.dictionaries import ReLUDictionary, TopKDictionary, build_dictionary
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Rows
from sae_tools.spaces import build_space
from tests.tiny_models import BOS, EOS, tiny_model

LENGTH = 24
WINDOW = ReportConfig(before=5, after=4, neighbours=3, logits=6)


@functools.cache
def tiny(kind: str = "gpt2") -> LanguageModel:
    return load_model(str(tiny_model(kind)))


def tiny_corpus(model: LanguageModel, rows: RowsConfig | None = None, contexts: int = 4) -> Corpus:
    """Random bytes with special tokens among them."""
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 256, (contexts, LENGTH), generator=g)
    tokens[:, 0] = BOS
    tokens[1, 7], tokens[2, 3], tokens[2, 15] = EOS, BOS, EOS
    kept = kept_positions(tokens, rows or RowsConfig(), model.special_token_ids)
    document = torch.zeros_like(tokens, dtype=torch.int32)
    return Corpus(tokens.to(torch.int32), kept, document, int(kept.sum()))


def read(model: LanguageModel, corpus: Corpus, *names: str) -> tuple[dict[str, Tensor], Tensor]:
    """(activations at the sites [tokens, d], final norm's scale [tokens]) through the bridge."""
    sites = [resolve_site(model, name) for name in names]
    hooks = [site.hook_name for site in sites]
    with torch.no_grad():
        cache = model.bridge.run_with_cache(corpus.tokens.long(), names_filter=[*hooks, "ln_final.hook_in"])[1]
        scale = FinalNorm.of(model).scale(cache["ln_final.hook_in"]).flatten()
    return {site.name: cache[site.hook_name].flatten(0, 1) for site in sites}, scale


def tiny_subject(
    model: LanguageModel, site: str, kind: str, name: str = "sae", d_sae: int = 20, relu: bool = False, **space: Any
) -> Subject:
    """Random weights that fire often; a free decoder whose rows are not of norm 1 with `relu`."""
    corpus = tiny_corpus(model, contexts=8)
    activations, scale = read(model, corpus, site)
    where = resolve_site(model, site)
    x = activations[where.name]
    position = torch.arange(LENGTH).repeat(len(x) // LENGTH)
    rows = Rows({where.name: x}, corpus.tokens.flatten().long(), position, position, scale)
    built = build_space(SpaceConfig(kind=kind, **space), where, model, rows[corpus.kept.flatten()])  # type: ignore[arg-type]
    architecture = ReLUConfig(form="decoder-norm") if relu else TopKConfig(k=4)
    cfg = DictionaryConfig(site=site, architecture=architecture, d_sae=d_sae, b_dec_init="mean", encoder_init="kaiming")
    g = torch.Generator().manual_seed(5)
    dictionary = build_dictionary(cfg, built.dim, g, built.read(rows), project=built.project)
    with torch.no_grad():
        dictionary.encoder.mul_(4)
        dictionary.b_enc.copy_(torch.randn(d_sae, generator=g) - 1)
        if isinstance(dictionary, ReLUDictionary):
            dictionary.W_dec.mul_(0.5 + 2 * torch.rand(d_sae, 1, generator=g))
    return Subject(name, where, built, dictionary.requires_grad_(False))


def tiny_transcoder(
    model: LanguageModel, reads: str, writes: str, kind: str, name: str = "transcoder", **space: Any
) -> Subject:
    """Random weights with a skip connection, from the site `reads` to the space `kind` of the site `writes`."""
    own = {"mlp_acts": "mlp_acts", "mlp_out": "resid_update", "attn_out": "resid_update"}
    read = tiny_subject(model, reads, own.get(reads.split("@")[0], "resid"), centre="mean")
    written = tiny_subject(model, writes, kind, **space)
    a, b = read.dictionary, written.dictionary
    skip = 0.1 * torch.randn(a.d_in, b.d_out, generator=torch.Generator().manual_seed(7))
    dictionary = TopKDictionary(
        a.encoder, a.b_enc, b.W_dec, b.b_dec, k=4, subtract_b_dec=False, W_skip=written.space.project(skip)
    )
    return Subject(name, read.site, read.space, dictionary.requires_grad_(False), written.space)


def codes(model: LanguageModel, subject: Subject, corpus: Corpus) -> Tensor:
    """Activations as the dictionary gives them, 0 at tokens that are not kept: [contexts, length, d_sae]."""
    activations, scale = read(model, corpus, subject.site.name)
    position = torch.arange(LENGTH).repeat(corpus.contexts)
    with torch.no_grad():
        f = subject.dictionary.encode(subject.space.forward(activations[subject.site.name], scale, position))
    return (f * corpus.kept.flatten().unsqueeze(1)).view(corpus.contexts, LENGTH, -1)


def tiny_examples(f: Tensor, subject: Subject, cfg: ReportConfig = WINDOW, per_feature: int = 3) -> Examples:
    """Each feature's strongest tokens, several of one context among them, in the form that the report uses."""
    shown = f * unit_norms(subject.dictionary)
    contexts, length, d_sae = shown.shape
    flat = shown.reshape(-1, d_sae)
    start, tokens, values, lead, window_start, offsets, inside = [0], [], [], [], [0], [], []
    for i in range(d_sae):
        order = flat[:, i].argsort(descending=True, stable=True)[:per_feature]
        for t in order[flat[order, i] > 0].tolist():
            context, peak = divmod(t, length)
            first, stop = max(0, peak - cfg.before), min(length, peak + cfg.after + 1)
            window = shown[context, first:stop, i]
            tokens.append(t)
            values.append(window[peak - first])
            lead.append(shown[context, first - 1, i] if first else torch.tensor(0.0))
            offsets.append((window > 0).nonzero().squeeze(1))
            inside.append(window[window > 0])
            window_start.append(window_start[-1] + len(inside[-1]))
        start.append(len(tokens))
    fires = (flat > 0).sum(0)
    return Examples(
        fires,
        flat.amax(0),
        flat.sum(0) / fires.clamp(min=1),
        torch.zeros(d_sae, 44, dtype=torch.int32),
        torch.tensor(start),
        torch.tensor(tokens, dtype=torch.int32),
        torch.zeros(len(tokens), dtype=torch.uint8),
        torch.stack(values),
        torch.tensor(window_start),
        torch.cat(offsets).to(torch.uint8),
        torch.cat(inside),
        torch.stack(lead),
    )
