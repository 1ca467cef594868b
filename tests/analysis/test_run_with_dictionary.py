"""The model with a dictionary in it, against the bridge's own hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.analysis.run_with_dictionary import measure_dictionary, run_with_dictionary
from sae_tools.config import RowsConfig
from sae_tools.dictionaries import ReLUDictionary, TopKDictionary
from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.dictionaries.formats.saelens import export_saelens
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError
from sae_tools.runs.tensors import save_tensors
from tests.analysis.subjects import codes, read, tiny, tiny_corpus, tiny_subject, tiny_transcoder
from tests.tiny_models import BOS

SITE = "mlp_out@1"
HOOK = "blocks.1.hook_mlp_out"


def sae(d_sae: int = 20, skip: bool = False) -> ReLUDictionary:
    g = torch.Generator().manual_seed(8)
    encoder, W_dec = torch.randn(d_sae, 32, generator=g), torch.randn(d_sae, 32, generator=g)
    b_enc, b_dec = torch.randn(d_sae, generator=g), torch.randn(32, generator=g)
    W_skip = torch.randn(32, 32, generator=g) if skip else None
    return ReLUDictionary(encoder, b_enc, W_dec, b_dec, form="decoder-norm", subtract_b_dec=not skip, W_skip=W_skip)


def by_hooks(put: Tensor, where: Tensor, hook: str = HOOK) -> Tensor:
    """Logits with these vectors, one for each of those tokens, put in by the bridge's own hooks."""

    def change(activation: Tensor, hook: Any) -> Tensor:
        return activation.masked_scatter(where.unsqueeze(-1), put)

    with torch.no_grad():
        return tiny().bridge.run_with_hooks(corpus().tokens.long(), fwd_hooks=[(hook, change)])


def corpus():
    return tiny_corpus(tiny())


def rows_at(name: str) -> Tensor:
    return read(tiny(), corpus(), name)[0][name][corpus().kept.flatten()]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_spliced():
    dictionary, x, kept = sae(), rows_at(SITE), corpus().kept
    run = run_with_dictionary(tiny(), dictionary, corpus().tokens, SITE)
    logits = by_hooks(dictionary(x), kept)
    close(run.logits, logits)
    close(run.reconstruction[kept], dictionary(x))
    whole = read(tiny(), corpus(), SITE)[0][SITE].view(4, 24, 32)
    close(run.reconstruction[~kept], whole[~kept])  # not bit for bit: other kernels
    close(run.features[kept], dictionary.encode(x))
    assert not run.features[~kept].any()
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), corpus().tokens[:, 1:].long(), reduction="none"
    )
    close(run.loss, expected)
    assert torch.equal(run.read, kept) and torch.equal(run.tokens, corpus().tokens.long())


@torch.no_grad()
def test_changed_features_change_the_activations_and_nothing_else():
    """x + Σ (f'_i - f_i) d_i: what the dictionary misses stays."""
    dictionary, x, kept = sae(), rows_at(SITE), corpus().kept
    f = dictionary.encode(x)
    put = (
        x
        - f[:, [3]] * dictionary.W_dec[3]
        + (2.5 - f[:, [7]]) * dictionary.W_dec[7]
        - 0.5 * f[:, [9]] * dictionary.W_dec[9]
    )
    run = run_with_dictionary(tiny(), dictionary, corpus().tokens, SITE, ablate=[3], steer={7: 2.5}, multiply={9: 0.5})
    close(run.logits, by_hooks(put, kept))
    without = run_with_dictionary(
        tiny(), dictionary, corpus().tokens, SITE, ablate=[3], steer={7: 2.5}, multiply={9: 0.5}, keep_error=False
    )
    close(without.logits, by_hooks(put - x + dictionary(x), kept))
    close(without.reconstruction[kept], put - x + dictionary(x))
    assert torch.equal(run.reconstruction, without.reconstruction)
    close(run.features[kept], f)
    kept_error = run_with_dictionary(tiny(), dictionary, corpus().tokens, SITE, keep_error=True)
    close(kept_error.logits, tiny().bridge(corpus().tokens.long()))


@torch.no_grad()
def test_only_encoded():
    run = run_with_dictionary(tiny(), sae(), corpus().tokens, SITE, splice=False)
    close(run.logits, tiny().bridge(corpus().tokens.long()))
    with pytest.raises(UserError, match="splice=False leaves the model as it is"):
        run_with_dictionary(tiny(), sae(), corpus().tokens, SITE, splice=False, ablate=[1])


@torch.no_grad()
def test_which_tokens():
    tokens = corpus().tokens
    run = run_with_dictionary(tiny(), sae(), tokens, SITE, rows=RowsConfig(skip_positions=4, skip_special=False))
    assert run.read[:, 4:].all() and not run.read[:, :4].any()
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[2, 5] = True
    run = run_with_dictionary(tiny(), sae(), tokens, SITE, where=where)
    x = read(tiny(), corpus(), SITE)[0][SITE].view(4, 24, 32)[where]
    close(run.logits, by_hooks(sae()(x), where))
    dictionary = sae()
    dictionary.metadata = {"skip_positions": 3, "hook_name": HOOK}
    run = run_with_dictionary(tiny(), dictionary, tokens)
    assert not run.read[:, :3].any() and run.read[0, 3]
    with pytest.raises(UserError, match="where must be a tensor of booleans of shape"):
        run_with_dictionary(tiny(), sae(), tokens, SITE, where=where[:1])


def test_sparse_features():
    dense = run_with_dictionary(tiny(), sae(), corpus().tokens, SITE).features
    sparse = run_with_dictionary(tiny(), sae(), corpus().tokens, SITE, sparse=True).features
    assert sparse.is_sparse and sparse.is_coalesced() and torch.equal(sparse.to_dense(), dense)
    assert sparse.values().numel() == int((dense != 0).sum())


@pytest.mark.parametrize("space", ["resid_update", "logit_update"])
@torch.no_grad()
def test_in_a_space(space: str):
    """A subject's feature is ablated in its space; what that cannot see stays. Its folded export does the same."""
    subject = tiny_subject(tiny(), SITE, space)
    run = run_with_dictionary(tiny(), subject, corpus().tokens, ablate=[2, 5])
    close(run.features, codes(tiny(), subject, corpus()))
    f = run.features[corpus().kept]
    direction = subject.space.lift(subject.dictionary.W_dec) - subject.space.lift(torch.zeros(1, subject.space.dim))
    put = rows_at(SITE) - f[:, [2, 5]] @ direction[[2, 5]]
    close(run.logits, by_hooks(put, corpus().kept))
    assert (f[:, [2, 5]] > 0).any()


@torch.no_grad()
def test_in_a_space_that_is_another_at_every_token(tmp_path: Path):
    subject = tiny_subject(tiny(), SITE, "logit_update", ln="token")
    run = run_with_dictionary(tiny(), subject, corpus().tokens, ablate=[2])
    f, scale = run.features[corpus().kept], read(tiny(), corpus(), SITE)[1][corpus().kept.flatten()]
    assert subject.space.inverse is not None
    direction = subject.dictionary.W_dec[2] * subject.space.scale @ subject.space.inverse
    put = rows_at(SITE) - f[:, [2]] * scale.unsqueeze(1) * direction
    close(run.logits, by_hooks(put, corpus().kept))
    export_saelens(subject.dictionary, subject.space, tmp_path, {})
    with pytest.raises(UserError, match=r" space\.safetensors is missing"):
        run_with_dictionary(tiny(), tmp_path, corpus().tokens)
    with pytest.raises(UserError, match="acts in a space that is not at hand"):
        run_with_dictionary(tiny(), load_dictionary(tmp_path), corpus().tokens)
    save_tensors(tmp_path / "space.safetensors", *subject.space.state())
    close(run_with_dictionary(tiny(), str(tmp_path), corpus().tokens, ablate=[2]).logits, run.logits)


@torch.no_grad()
def test_by_its_path_a_checkpoint_has_the_mean_of_what_no_logit_shows(tmp_path: Path):
    subject = tiny_subject(tiny(), SITE, "logit_update")
    export_saelens(subject.dictionary, subject.space, tmp_path, {})
    whole, export = (run_with_dictionary(tiny(), given, corpus().tokens) for given in (subject, str(tmp_path)))
    close(export.logits, whole.logits)
    matrix, inverse = subject.space.matrix, subject.space.inverse
    assert matrix is not None and inverse is not None
    x = rows_at(SITE)
    unseen = x - x @ matrix @ inverse - subject.space.null_mean
    assert unseen.abs().max() > 0.01
    close((whole.reconstruction - export.reconstruction)[corpus().kept], unseen)


@torch.no_grad()
def test_a_transcoder_is_put_where_it_writes():
    dictionary = sae(skip=True)
    dictionary.metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": HOOK}
    x, kept = rows_at("mlp_in@1"), corpus().kept
    close(run_with_dictionary(tiny(), dictionary, corpus().tokens).logits, by_hooks(dictionary(x), kept))
    run = run_with_dictionary(tiny(), dictionary, corpus().tokens, "mlp_in@1", writes=SITE, ablate=[4])
    close(run.logits, by_hooks(rows_at(SITE) - dictionary.encode(x)[:, [4]] * dictionary.W_dec[4], kept))
    dictionary.metadata = {"architecture": "skip_transcoder"}
    with pytest.raises(UserError, match="does not say where it writes; name it, such as writes='mlp_out@3'"):
        run_with_dictionary(tiny(), dictionary, corpus().tokens, "mlp_in@1")


@torch.no_grad()
def test_a_transcoder_between_spaces(tmp_path: Path):
    """Its folder says both spaces, and where neither can be folded into the weights both are needed."""
    subject = tiny_transcoder(tiny(), "mlp_in@1", SITE, "logit_update", ln="token")
    assert subject.target_space is not None
    export_saelens(subject.dictionary, subject.space, tmp_path, {}, writes=subject.target_space)
    save_tensors(tmp_path / "space.safetensors", *subject.space.state())
    with pytest.raises(UserError, match=r"target_space\.safetensors is missing"):
        run_with_dictionary(tiny(), tmp_path, corpus().tokens)
    save_tensors(tmp_path / "target_space.safetensors", *subject.target_space.state())
    ours = run_with_dictionary(tiny(), tmp_path, corpus().tokens)
    close(ours.logits, run_with_dictionary(tiny(), subject, corpus().tokens).logits)
    (activations, scale), kept = read(tiny(), corpus(), "mlp_in@1", SITE), corpus().kept
    x, y = (activations[name][kept.flatten()] for name in ("mlp_in@1", SITE))
    z = subject.dictionary(subject.space.forward(x))
    close(ours.logits, by_hooks(subject.target_space.lift(z, scale[kept.flatten()], x=y), kept))


def test_a_file_says_its_site(tmp_path: Path):
    write_dictionary(sae(), tmp_path / "sae", to="saelens", metadata={"hook_name": HOOK})
    close(
        run_with_dictionary(tiny().bridge, str(tmp_path / "sae"), corpus().tokens).logits,
        run_with_dictionary(tiny(), sae(), corpus().tokens, SITE).logits,
    )


def test_text_gets_bos():
    run = run_with_dictionary(tiny(), sae(), "def f(x):", SITE)
    assert run.tokens.shape == (1, 10) and run.tokens[0, 0] == BOS and not run.read[0, 0]
    again = run_with_dictionary(tiny(), sae(), run.tokens[0].tolist(), SITE)
    assert torch.equal(again.logits, run.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": None}, "metadata names no site"),
        ({"site": "mlp_acts@1"}, "it has d_in = 32, but mlp_acts@1 of .* is 128 wide"),
        ({"ablate": [20]}, "there is no feature 20: they are 0 to 19"),
        ({"ablate": [3], "steer": {3: 1.0}}, "feature 3 is to be changed twice"),
        ({"tokens": [[1, 2, 999]]}, "a token id is outside the vocabulary"),
        ({"tokens": torch.zeros(1, 65, dtype=torch.int64)}, "65 tokens are more than the 64"),
        ({"tokens": torch.zeros(1, 5)}, "tokens are ids"),
        ({"tokens": ["a text", "another"]}, "tokens are one text, or ids"),
        ({"tokens": [[1, 2], [3]]}, "tokens are one text, or ids"),
        ({"ablate": 3}, "ablate is a list of features, and no int"),
        ({"ablate": ["3"]}, "there is no feature 3: they are 0 to 19"),
        ({"ablate": torch.tensor([3, 3])}, "feature 3 is to be changed twice"),
        ({"steer": [3]}, "steer is a mapping {feature: number}, and no list"),
        ({"steer": {3: float("nan")}}, "feature 3 gets 'nan', which is no finite number"),
        ({"multiply": {3: "2"}}, "feature 3 gets '2', which is no finite number"),
        ({"where": [True]}, "where must be a tensor of booleans"),
    ],
)
def test_what_makes_no_sense(arguments: dict[str, Any], message: str):
    tokens = arguments.pop("tokens", corpus().tokens)
    with pytest.raises(UserError, match=message):
        run_with_dictionary(tiny(), sae(), tokens, **{"site": SITE, **arguments})


def test_figures():
    tokens = corpus().tokens
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    perfect = TopKDictionary(both, torch.zeros(64), both.clone(), torch.zeros(32), k=32)
    found = measure_dictionary(tiny(), perfect, tokens, SITE)
    assert found["tokens"] == corpus().counted and abs(found["kl"]) < 1e-6
    assert found["fvu"]["resid_update"] < 1e-10 and abs(found["ce_recovered"]["mean"] - 1) < 1e-4
