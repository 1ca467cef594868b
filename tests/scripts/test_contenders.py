from __future__ import annotations

import math

import pytest
import torch
from contenders import ours
from contenders.build import names
from contenders.runs import HELDOUT, RunSetting, Timed, job_config, quality, write_text
from contenders.start import BENCHES, Setting, density_threshold, make_start

from sae_tools.data.documents import split_of

SMALL = Setting(d_in=32, d_sae=256, k=6, batch=512, l0=10)


@pytest.mark.parametrize("bench", BENCHES)
def test_a_step_of_ours_is_as_dense_as_it_says(bench):
    contender = ours.build(bench, make_start(SMALL))
    for _ in range(3):
        contender.step()
    if bench in ("topk", "batchtopk"):
        assert contender.l0() == pytest.approx(SMALL.k)
    else:
        assert 0.8 * SMALL.l0 < contender.l0() <= SMALL.l0


@pytest.mark.parametrize("bench", BENCHES)
def test_saelens_starts_from_the_same_weights(bench):
    with_saelens = pytest.importorskip("contenders.with_saelens")
    start = make_start(SMALL)
    mine, theirs = ours.build(bench, start), with_saelens.build(bench, start)
    mine.step()
    assert theirs.l0() == pytest.approx(mine.l0(), abs=1.5 / SMALL.batch)


def test_dead_features_are_revived_where_auxk_is_timed():
    start = make_start(Setting(d_in=32, d_sae=256, k=6, batch=512, aux=True))
    assert start.dead is not None and int(start.dead.sum()) == 32
    subject = ours.trainee("topk", start, "float32")
    first = subject.propose(start.x, 0)
    assert first.fired[start.dead].sum() == 0
    subject.apply(first, 0, 100, 512, torch.zeros(()))
    second = subject.propose(start.x, 1)
    assert second.terms["aux"] > 0
    assert second.gradients[2][start.dead].abs().sum() > 0  # of the decoder


def test_the_threshold_lets_through_what_is_wanted():
    pre = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    threshold = density_threshold(pre, 20)
    assert (pre >= threshold).sum() == 20 * 64


def test_each_bench_has_who_has_it():
    assert "sparsify" in names("topk") and "sparsify" not in names("relu")
    assert all({"sae_tools", "saelens", "dictionary_learning", "product"} <= set(names(bench)) for bench in BENCHES)


def test_both_runs_read_the_same_training_text(tmp_path):
    texts = write_text(tmp_path / "text.jsonl", 300_000)
    lines = (tmp_path / "text.jsonl").read_text().splitlines()
    assert sum(map(len, texts)) > 200_000
    assert len(texts) <= len(lines) and all(split_of(text, HELDOUT) == "train" for text in texts)
    cfg = job_config(RunSetting(), tmp_path / "text.jsonl", tmp_path)
    assert (
        cfg.data.heldout == HELDOUT and cfg.dictionaries["bench"].architecture.dead_after_tokens > cfg.training.tokens
    )


def test_quality_is_fvu_and_l0():
    x = torch.randn(5000, 8)
    assert quality(x, torch.relu, lambda part: part)[0] == 0
    fvu, l0 = quality(x, torch.relu, lambda part: x.mean(0).expand_as(part))
    assert fvu == pytest.approx(1) and l0 == pytest.approx((x > 0).sum().item() / 5000)
    assert math.isfinite(fvu)


def test_a_clocked_part_is_still_the_part():
    class Part:
        capacity = 7

        def __next__(self) -> int:
            return sum(range(100_000))

    part = Timed(Part(), "__next__")
    assert part.capacity == 7 and part.seconds == 0
    assert next(part) == sum(range(100_000)) and part.seconds > 0
