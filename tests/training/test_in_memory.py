"""Training on one's own tensors: the steps of a job, in the units of the rows that were given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.config import DictionaryConfig, TopKConfig
from sae_tools.dictionaries import BatchTopKDictionary, Dictionary, GatedDictionary, JumpReLUDictionary, TopKDictionary
from sae_tools.errors import UserError
from sae_tools.training.guard import NonFiniteError
from sae_tools.training.in_memory import Trained, in_other_units, train

D, N = 16, 24
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka": {"k": 3, "widths": [8, 48]},
    "relu": {"l1": 0.1},
    "jumprelu": {"l0_coefficient": 0.1},
    "gated": {"l1": 0.1},
}
SHORT: dict[str, Any] = {"d_sae": 48, "batch_size": 256, "lr": 3e-3, "warmup_steps": 5, "log_every": 10}


def toy(rows: int = 4000, scale: float = 7.0) -> Tensor:
    """Sums of two or three of N directions, far from a mean squared norm of D."""
    g = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=-1)
    strengths = (1 + torch.rand(rows, N, generator=g)) * (torch.rand(rows, N, generator=g) < 2.5 / N)
    return scale * strengths @ directions + 3


def unexplained(dictionary: Dictionary, x: Tensor, y: Tensor | None = None) -> float:
    y = x if y is None else y
    with torch.no_grad():
        return float((y - dictionary(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_learns_rows_of_any_size(kind: str):
    x = toy()
    trained = train(kind, x, tokens=30_000, **ARCHITECTURES[kind], **SHORT)  # type: ignore[arg-type]
    assert trained.tokens == 118 * 256 and [record["step"] for record in trained.metrics][-2:] == [110, 118]
    assert unexplained(trained.dictionary, x) < 0.3
    # what the metrics say is what the dictionary does, in the rows' own coordinates
    assert trained.metrics[-1]["fvu"] == pytest.approx(unexplained(trained.dictionary, x), abs=0.06)
    with torch.no_grad():
        l0 = (trained.dictionary.encode(x) > 0).sum(1).float().mean().item()
    assert trained.metrics[-1]["l0"] == pytest.approx(l0, rel=0.25)
    if trained.dictionary.unit_decoder:
        torch.testing.assert_close(trained.dictionary.decoder_norms, torch.ones(48), rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in trained.dictionary.parameters())


def test_one_seed_one_dictionary_and_the_unit_of_rows_does_not_matter():
    x = toy()
    arguments: dict[str, Any] = {"k": 3, "tokens": 10_000, **SHORT}
    first, again, other = (train("topk", x, seed=seed, **arguments) for seed in (0, 0, 1))
    large = train("topk", 1024.0 * x, **arguments)
    assert torch.equal(first.dictionary.encoder, again.dictionary.encoder) and first.metrics == again.metrics
    assert not torch.equal(first.dictionary.encoder, other.dictionary.encoder)
    torch.testing.assert_close(large.dictionary.W_dec, first.dictionary.W_dec)
    torch.testing.assert_close(large.dictionary.b_enc, 1024 * first.dictionary.b_enc)
    with torch.no_grad():
        torch.testing.assert_close(large.dictionary(1024 * x), 1024 * first.dictionary(x), rtol=1e-3, atol=1)


def test_an_iterator_gives_the_same_as_its_rows_in_other_pieces():
    x = toy(3000)
    arguments: dict[str, Any] = {"k": 3, "tokens": 2560, "estimate_rows": 1000, **SHORT}
    whole = train("topk", [x], **arguments)
    pieces = train("topk", (part for part in x.split([700, 1, 999, 1300])), **arguments)
    assert torch.equal(whole.dictionary.encoder, pieces.dictionary.encoder)
    del arguments["k"]
    assert train(TopKConfig(k=3), iter([x]), **arguments).metrics == whole.metrics
    del arguments["d_sae"]
    cfg = DictionaryConfig(site="anything", architecture=TopKConfig(k=3), d_sae=48)
    assert train(cfg, [x], **arguments).metrics == whole.metrics


def test_arrays_train_as_tensors_do():
    x = toy(2000)
    arguments: dict[str, Any] = {"k": 3, "tokens": 2560, **SHORT}
    first = train("topk", x, **arguments)
    again = train("topk", x.numpy(), **arguments)
    assert torch.equal(first.dictionary.encoder, again.dictionary.encoder) and first.metrics == again.metrics


def test_rows_that_run_out():
    with pytest.warns(UserWarning, match="the rows ran out after 2,816 of 5,120"):
        trained = train("topk", iter([toy(3000)]), k=3, tokens=5000, **SHORT)
    assert trained.tokens == 2816 and isinstance(trained.dictionary, TopKDictionary)
    assert [record["step"] for record in trained.metrics] == [10, 11]
    with pytest.raises(UserError, match="the rows are fewer than the 256 of one batch"):
        train("topk", iter([toy(255)]), k=3, tokens=5000, **SHORT)


def test_a_transcoder_with_a_skip():
    x = toy()
    g = torch.Generator().manual_seed(2)
    y = 0.01 * (x @ torch.randn(D, 5, generator=g)).relu() + 1
    trained = train("topk", (x, y), k=4, skip=True, tokens=40_000, **SHORT)
    assert (trained.dictionary.d_in, trained.dictionary.d_out) == (D, 5) and trained.dictionary.W_skip is not None
    assert unexplained(trained.dictionary, x, y) < 0.2
    assert trained.metrics[-1]["fvu"] == pytest.approx(unexplained(trained.dictionary, x, y), abs=0.05)
    with pytest.raises(UserError, match="rows must be pairs"):
        train(trained.dictionary, x, **{**SHORT, "d_sae": None})
    with pytest.raises(UserError, match="rows must be pairs"):
        train("topk", x, skip=True, k=4, **SHORT)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_training_goes_on_from_a_dictionary(kind: str):
    x = toy()
    start = train(kind, x, tokens=30_000, **ARCHITECTURES[kind], **SHORT).dictionary  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in start.state_dict().items()}
    start.metadata = {"hook_name": "here"}
    more = {key: value for key, value in ARCHITECTURES[kind].items() if key in ("l1", "l0_coefficient")}
    again = train(start, x, tokens=256, batch_size=256, lr=1e-9, warmup_steps=0, log_every=1, **more)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert type(again.dictionary) is type(start) and again.dictionary.metadata == {"hook_name": "here"}
    for name, value in again.dictionary.named_parameters():
        torch.testing.assert_close(value.detach(), before[name], rtol=1e-4, atol=1e-4)
    further = train(start, x, tokens=10_000, **{**SHORT, "d_sae": None}, **more)
    assert unexplained(further.dictionary, x) < unexplained(start, x) + 0.03


def test_settings_of_a_dictionary_can_be_others():
    start = train("topk", toy(), k=3, tokens=1000, **SHORT).dictionary
    wider = train(start, toy(), k=7, tokens=1000, **{**SHORT, "d_sae": None}).dictionary
    assert isinstance(wider, TopKDictionary) and wider.k == 7


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_a_free_decoder_goes_on_as_one_of_norm_1(kind: Any):
    start = train(kind, toy(), form="decoder-norm", tokens=1000, **SHORT).dictionary
    with torch.no_grad():
        start.W_dec.mul_(torch.linspace(0.2, 5, 48).unsqueeze(1))
    again = train(start, toy(), form="unit-norm", tokens=256, batch_size=256, lr=1e-9, warmup_steps=0).dictionary
    torch.testing.assert_close(again.decoder_norms, torch.ones(48))
    torch.testing.assert_close(again(toy()), start(toy()), rtol=1e-4, atol=1e-3)


def test_a_dictionary_that_subtracts_b_dec_goes_on_to_other_targets():
    """Training starts with the features that it had, though targets get a unit of their own."""
    x = toy()
    start = train("relu", x, l1=0.1, tokens=20_000, **SHORT).dictionary
    arguments: dict[str, Any] = {"tokens": 4000, "batch_size": 4000, "lr": 1e-9, "warmup_steps": 0}
    there = train(start, (x, 50 * x), **arguments)
    torch.testing.assert_close(there.dictionary(x), start(x), rtol=1e-4, atol=1e-3)
    active = float((start.encode(x) > 0).sum(1).float().mean())
    assert there.metrics[0]["l0"] == pytest.approx(active, rel=1e-3)


@pytest.mark.parametrize("two", [False, True])
def test_other_units(two: bool):
    g = torch.Generator().manual_seed(0)
    encoder, b_enc = torch.randn(20, 6, generator=g), torch.randn(20, generator=g)
    shared = (encoder, b_enc, torch.randn(20, 6, generator=g), torch.randn(6, generator=g))
    kinds = [
        TopKDictionary(*shared, k=4, subtract_b_dec=not two, W_skip=torch.randn(6, 6) if two else None),
        BatchTopKDictionary(*shared, k=4, threshold=0.7, subtract_b_dec=not two),
        JumpReLUDictionary(*shared, torch.rand(20, generator=g), subtract_b_dec=not two),
        GatedDictionary(*shared, torch.randn(20), torch.randn(20), subtract_b_dec=not two),
    ]
    x = torch.randn(50, 6, generator=g)
    for dictionary in kinds:
        other = in_other_units(dictionary, 4.0, 0.5 if two else None)
        factor = 0.5 if two else 4.0
        with torch.no_grad():
            torch.testing.assert_close(other.encode(4 * x), factor * dictionary.encode(x), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(other(4 * x), factor * dictionary(x), rtol=1e-4, atol=1e-4)


def test_bad_rows_stop_it():
    x = toy()
    x[2600, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="the rows became non-finite at step 11"):
        train("topk", [x], k=3, tokens=4000, estimate_rows=2000, **SHORT)


def test_records_are_handed_over_as_they_come(capfd):
    seen: list[dict[str, float]] = []
    trained = train("topk", toy(), k=3, tokens=10_000, on_record=seen.append, progress=True, **SHORT)
    assert isinstance(trained, Trained) and seen == trained.metrics and len(seen) == 4
    assert {"loss", "l0", "fvu", "dead", "lr", "tokens"} <= seen[0].keys()


def test_the_sparsity_coefficient_is_searched_for():
    free, few = (train("relu", toy(), tokens=60_000, match_l0=wanted, **SHORT).metrics[-1] for wanted in (None, 3))
    assert few["coefficient"] > 1.5 and few["l0"] == pytest.approx(3, rel=0.1) and free["l0"] > 4
    with pytest.raises(UserError, match="match_l0"):
        train("topk", toy(), k=3, match_l0=3, **SHORT)
    with pytest.warns(UserWarning, match=r"features fire per row of late, and 1 were asked for \(match_l0\)"):
        train("relu", toy(), tokens=5_000, match_l0=1, **SHORT)


@pytest.mark.parametrize(
    ("what", "rows", "settings", "message"),
    [
        ("topk", [toy(10)], {}, "tokens is missing"),
        ("topk", toy(300), {"q": 3}, "^q: is no setting of topk.$"),
        ("topk", toy(300), {"k": 0}, "k: Input should be greater than or equal to 1"),
        ("topk", toy(300), {"k": 49}, "^architecture.k is 49, more than its d_sae of 48"),
        ("nothing", toy(300), {}, "^there is no architecture 'nothing'; expected 'topk', 'batchtopk'"),
        ("topk", toy(0), {}, "there are no rows"),
        ("topk", toy(300), {"tokens": 0}, "tokens: Input should be greater"),
        ("topk", toy(300), {"lr": 0}, "lr: Input should be greater than 0"),
        (TopKConfig(), toy(300), {"k": 3}, "k is a setting of the configuration that is given"),
        ("relu", toy(300), {"resample_at": [3]}, "train does not resample"),
        ("topk", torch.zeros(300, D), {}, "the rows are all zero"),
        (7, toy(300), {}, "and no int"),
        ("topk", toy(300), {"batch_size": 0}, "batch_size is 0, and must be at least 1"),
        ("topk", toy(300), {"log_every": 0}, "log_every is 0, and must be at least 1"),
        ("topk", torch.ones(300, D), {"k": 3}, "the rows are all equal"),
        (DictionaryConfig(site="x"), toy(300), {}, "d_sae, skip and match_l0 are settings of the configuration"),
        (DictionaryConfig(site="x", init_from="y"), toy(300), {"d_sae": None}, "init_from is for jobs"),
    ],
)
def test_what_makes_no_sense(what: Any, rows: Any, settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        train(what, rows, **{**SHORT, **settings})
