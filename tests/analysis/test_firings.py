"""The pass against one context at a time through the bridge, and dense encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_tools.activations.harvest import Harvester
from sae_tools.analysis import firings as firings_module
from sae_tools.analysis.corpus import Corpus
from sae_tools.analysis.firings import Firings, Reading, write_firings
from sae_tools.analysis.subject import Subject, kept_positions
from sae_tools.config import RowsConfig, SpaceConfig
from sae_tools.dictionaries import (
    BatchTopKDictionary,
    Dictionary,
    JumpReLUDictionary,
    ReLUDictionary,
    TopKDictionary,
)
from sae_tools.errors import UserError
from sae_tools.models.capture import capture
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts, Rows
from sae_tools.spaces import build_space
from tests.analysis.made_up import dense_activations, write_shards
from tests.tiny_models import tiny_model

ROWS = RowsConfig(skip_positions=2)
LENGTH = 24


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def corpus(model: LanguageModel) -> Corpus:
    tokens = torch.randint(0, 256, (9, LENGTH), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = 256
    tokens[2, 11] = 256
    tokens[5] = 256  # a context without a row
    kept = kept_positions(tokens, ROWS, model.special_token_ids)
    return Corpus(tokens.int(), kept, torch.zeros_like(tokens).int(), int(kept.sum()))


def weights(d: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    encoder, decoder = torch.randn(n, d, generator=random), torch.randn(n, d, generator=random)
    return encoder, -0.5 * torch.rand(n, generator=random), decoder, 0.1 * torch.randn(d, generator=random)


@pytest.fixture(scope="module")
def readings(model: LanguageModel, corpus: Corpus) -> list[Reading]:
    """Of different sites, spaces, sizes and architectures; one is dead."""
    sites = [resolve_site(model, name) for name in ("mlp_acts@1", "mlp_out@1", "mlp_out@2")]
    sample = Harvester(model, sites, ROWS, need_scale=True).harvest(Contexts(corpus.tokens.long(), corpus.document))

    def reading(name: str, site: int, space: SpaceConfig, make) -> Reading:
        built = build_space(space, sites[site], model, sample)
        dictionary: Dictionary = make(*weights(built.dim, 30 + 7 * len(name), len(name)))
        return Reading(name, Subject(name, sites[site], built, dictionary), dictionary.W_dec.detach().norm(dim=1), name)

    def dead(encoder, b_enc, decoder, b_dec) -> Dictionary:
        return ReLUDictionary(encoder, b_enc - 1000, decoder, b_dec)

    def jumping(encoder, b_enc, decoder, b_dec) -> Dictionary:
        threshold = torch.linspace(0, 3, len(b_enc))
        return JumpReLUDictionary(encoder, b_enc, decoder, b_dec, threshold, unit_decoder=False)

    return [
        reading("acts", 0, SpaceConfig(kind="mlp_acts"), lambda *w: TopKDictionary(*w, k=5)),
        reading("free", 1, SpaceConfig(), lambda *w: ReLUDictionary(*w, form="decoder-norm")),
        reading("logits", 2, SpaceConfig(kind="logit_update", ln="token"), lambda *w: TopKDictionary(*w, k=3)),
        reading("dead", 1, SpaceConfig(), dead),
        reading("batch", 1, SpaceConfig(), lambda *w: BatchTopKDictionary(*w, k=3, threshold=2.0)),
        reading("jump", 2, SpaceConfig(), jumping),
    ]


def dense_of(reading: Reading, model: LanguageModel, corpus: Corpus) -> tuple[np.ndarray, float]:
    """([tokens, d_sae], mean of 1/σ over the kept tokens), a context at a time."""
    subject = reading.subject
    last = resolve_site(model, f"resid_post@{model.n_layers - 1}").hook_name
    norm = FinalNorm.of(model)
    parts, inverse = [], []
    for tokens, kept in zip(corpus.tokens.long(), corpus.kept, strict=True):
        found = capture(model, tokens[None], [subject.site.hook_name, last], use_view=False)
        scale = norm.scale(found[last][0]).squeeze(-1)
        z = subject.space.forward(found[subject.site.hook_name][0], scale, torch.arange(LENGTH))
        f = subject.dictionary.encode(z) * subject.dictionary.W_dec.norm(dim=1)
        parts.append(torch.where(kept[:, None], f, 0.0).detach().numpy())
        inverse += (1 / scale[kept]).tolist()
    return np.concatenate(parts), float(np.mean(inverse))


def dense_from(firings: Firings, tokens: int) -> np.ndarray:
    block = firings.block(0, firings.d_sae)
    dense = np.zeros((tokens, firings.d_sae), np.float32)
    for feature in range(firings.d_sae):
        own = slice(block.start[feature], block.start[feature + 1])
        assert (np.diff(block.token[own]) > 0).all() and (block.value[own] > 0).all()
        dense[block.token[own], feature] = block.value[own]
    return dense


@pytest.mark.parametrize("shard_tokens", [10, 70, 10_000])
def test_equal_to_dense_activations(model, corpus, readings, tmp_path, shard_tokens: int, monkeypatch):
    monkeypatch.setattr(firings_module, "FORWARD_TOKENS", 2 * LENGTH)
    monkeypatch.setattr(firings_module, "DENSE_BYTES", 4 * 50 * 7)
    done: list[int] = []
    found, scale = write_firings(model, readings, corpus, ROWS, tmp_path, done.append, shard_tokens)
    assert done[-1] == corpus.counted and done == sorted(done)
    for reading, firings in zip(readings, found, strict=True):
        expected, mean = dense_of(reading, model, corpus)
        assert np.allclose(dense_from(firings, corpus.tokens.numel()), expected, rtol=1e-5, atol=3e-4)
        assert scale == pytest.approx(mean, rel=1e-6)
        assert firings.fires.tolist() == (expected > 0).sum(0).tolist()
    assert not found[3].fires.any() and found[1].fires.any()


def test_one_pass_for_all_and_what_is_there_is_not_done_again(model, corpus, readings, tmp_path, monkeypatch):
    passes: list[int] = []

    class Counting(Harvester):
        def harvest(self, contexts: Contexts) -> Rows:
            passes.append(len(contexts.tokens))
            return super().harvest(contexts)

    monkeypatch.setattr(firings_module, "Harvester", Counting)

    def write() -> tuple[list[Firings], float]:
        passes.clear()
        return write_firings(model, readings, corpus, ROWS, tmp_path, shard_tokens=3 * LENGTH)

    whole, scale = write()
    assert sum(passes) == corpus.contexts
    content = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(content) == 3 * len(readings)

    assert write()[1] == scale and passes == []
    whole[1].files[2].unlink()
    whole[2].files[1].write_bytes(content[whole[2].files[1]][:-1])  # damaged
    assert write()[1] == scale and passes == [3, 3]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == content

    readings = [*readings[:1], Reading("free", readings[1].subject, readings[1].norms, "changed"), *readings[2:]]
    write()
    assert passes == [3, 3, 3]
    for firings in whole:
        firings.remove()
    assert not list(tmp_path.iterdir())


def test_killed_between_two_shards(model, corpus, readings, tmp_path):
    whole, scale = write_firings(model, readings, corpus, ROWS, tmp_path / "whole", shard_tokens=2 * LENGTH)

    for shard in range(1, 5):  # each goes one shard further, then stops

        def stop(counted: int, files: int = shard * len(readings)) -> None:
            if len(list((tmp_path / "killed").iterdir())) == files:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_firings(model, readings, corpus, ROWS, tmp_path / "killed", stop, 2 * LENGTH)
    again, same = write_firings(model, readings, corpus, ROWS, tmp_path / "killed", shard_tokens=2 * LENGTH)
    assert same == scale
    for a, b in zip(whole, again, strict=True):
        assert [x.read_bytes() for x in a.files] == [x.read_bytes() for x in b.files]


@given(cuts=st.lists(st.integers(1, 6), unique=True).map(sorted), limit=st.integers(1, 300), few=st.integers(0, 8))
def test_blocks_are_the_features_whatever_the_shards(tmp_path_factory, cuts, limit, few):
    dense = dense_activations(length=12)
    firings = write_shards(tmp_path_factory.mktemp("shards"), dense, 12, cuts)
    assert firings.fires.tolist() == (dense > 0).sum(0).tolist()
    blocks = list(firings.blocks(limit))
    assert [block.first for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == dense.shape[1]
    for block in [*blocks, firings.block(few, 9)]:
        assert len(block.value) <= limit or block.stop == block.first + 1 or block.first == few
        for i in range(block.stop - block.first):
            own = slice(block.start[i], block.start[i + 1])
            column = dense[:, block.first + i]
            assert block.token[own].tolist() == np.flatnonzero(column).tolist()
            assert block.value[own].tolist() == column[column > 0].tolist()
        assert block.feature().tolist() == [i for i, n in enumerate(block.counts) for _ in range(n)]


def test_too_many_tokens(model, readings, tmp_path):
    tokens = torch.zeros(1, dtype=torch.int32).expand(2**27, 16)
    kept = torch.ones(1, dtype=torch.bool).expand(2**27, 16)
    with pytest.raises(UserError, match="fewer than 2\\^31 tokens"):
        write_firings(model, readings, Corpus(tokens, kept, tokens, 1), ROWS, tmp_path)
