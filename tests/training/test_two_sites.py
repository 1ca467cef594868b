"""Dictionaries that write elsewhere than they read through a whole job: trained, resumed, read by SAELens, reported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from sae_tools.allocations import peak_of
from sae_tools.analysis.feature_files import FeatureFile
from sae_tools.analysis.sources import open_sources
from sae_tools.analysis.subject import Subject, reconstruct
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.config_report import ReportConfig
from sae_tools.errors import UserError
from sae_tools.models.capture import capture
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.report.build import build_report
from sae_tools.runs.tensors import load_tensors
from sae_tools.training.estimate import estimate_job
from sae_tools.training.estimate_memory import small_dictionary, trained
from sae_tools.training.run import run_job
from sae_tools.training.step import training_step
from sae_tools.training.storing import write_store
from tests.jobs import job_config, write_job
from tests.tiny_models import HIDDEN, WIDTH, tiny_model
from tests.training.resuming import contents, killed, resume

UPDATE = {"site": "mlp_out@1", "space": {"kind": "resid_update"}}
TRANSCODER = {"site": "mlp_in@1", "space": {"kind": "resid", "centre": "mean"}, "writes": UPDATE, "d_sae": 40}
ACTS = {"site": "mlp_acts@1", "space": {"kind": "mlp_acts"}, "writes": UPDATE, "d_sae": 40}
TOPK = {"kind": "topk", "k": 4, "dead_after_tokens": 600}
BATCH = {**TOPK, "kind": "batchtopk"}
RELU = {"kind": "relu", "l1": 3.0, "resample_at": [10], "resample_dead_steps": 1}
JUMP = {"kind": "jumprelu", "l0_coefficient": 0.1, "init_threshold": 0.5}
LOGITS = {"site": "mlp_out@1", "space": {"kind": "logit_update", "centre": "mean", "rotation": 3}}
DICTIONARIES: dict[str, dict[str, Any]] = {
    "topk": {**TRANSCODER, "architecture": TOPK},
    "skip": {**TRANSCODER, "architecture": TOPK, "skip": True},
    "acts": {**ACTS, "architecture": TOPK},
    "relu": {**ACTS, "architecture": {**RELU, "resample_inputs": 300}, "encoder_init": "kaiming"},
    "free": {**ACTS, "architecture": {"kind": "relu", "form": "decoder-norm", "l1": 0.1}, "skip": True},
    "batch": {**TRANSCODER, "architecture": BATCH, "writes": LOGITS},
    "matryoshka": {**ACTS, "architecture": {**BATCH, "kind": "matryoshka"}},
    "jump": {**ACTS, "architecture": JUMP, "skip": True, "writes": LOGITS},
    "gated": {**TRANSCODER, "architecture": {"kind": "gated", "l1": 0.1}},
    "stream": {**ACTS, "architecture": TOPK, "writes": {"site": "resid_post@2", "space": {"kind": "resid"}}},
}
SAELENS = {
    "relu": "Transcoder",
    "free": "SkipTranscoder",
    "batch": "JumpReLUTranscoder",
    "matryoshka": "JumpReLUTranscoder",
    "jump": "JumpReLUSkipTranscoder",
}
SMALL = ReportConfig(tokens=400, chunk=32, device="cpu")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"), dictionaries=DICTIONARIES)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model(tiny_model("gpt2"))


@pytest.fixture(scope="module")
def run(job: Path) -> Path:
    return run_job(load_config(JobConfig, job), console=Console(file=io.StringIO())).run.path


@pytest.fixture(scope="module")
def subjects(run: Path) -> dict[str, Subject]:
    (group,) = open_sources([run], SMALL)
    return {source.id: source.subject for source in group.sources}


@pytest.fixture(scope="module")
def rows(model: LanguageModel, subjects: dict[str, Subject]) -> dict[str, Tensor]:
    """Activations by site at 620 tokens, none at position 0."""
    sites = {site.name: site.hook_name for subject in subjects.values() for site in subject.sites}
    tokens = torch.randint(3, 256, (20, 32), generator=torch.Generator().manual_seed(0))
    found = capture(model, tokens, list(sites.values()))
    return {name: found[hook][:, 1:].flatten(0, 1) for name, hook in sites.items()}


def test_what_is_in_memory_is_what_was_trained(run: Path, subjects: dict[str, Subject]) -> None:
    for name, subject in subjects.items():
        (folder,) = (run / name / "checkpoints").glob("3072")
        trained, _ = load_tensors(folder / "trainer.safetensors")
        W_dec = subject.written.project(trained["parameter.W_dec"])  # nothing else comes back from the export
        norms = W_dec.norm(dim=1, keepdim=True) if name == "free" else 1  # which has decoder rows of norm 1 then
        assert (subject.dictionary.W_dec * norms - W_dec).abs().max() < 1e-5, name
        assert (subject.dictionary.encoder - trained["parameter.encoder"] * norms).abs().max() < 1e-3, name
        assert ("parameter.W_skip" in trained) == (subject.dictionary.W_skip is not None)
        assert subject.target_space is not None and subject.written_site.name == DICTIONARIES[name]["writes"]["site"]
        if subject.dictionary.W_skip is not None:
            saved = subject.written.project(trained["parameter.W_skip"])
            assert saved.abs().max() > 1e-3 and (subject.dictionary.W_skip - saved).abs().max() < 1e-4, name


def test_fidelity_is_that_of_the_written_vectors(run: Path) -> None:
    fidelity = json.loads((run / "analysis" / "fidelity.json").read_text())
    for name, entry in fidelity.items():
        writes = DICTIONARIES[name]["writes"]
        assert entry["writes"] == {"site": writes["site"], "space": writes["space"]["kind"]}
        assert entry["ablated_site"] == writes["site"]
        expected = {"resid_update": ["resid_update", "logit_update"]}.get(
            writes["space"]["kind"], [writes["space"]["kind"]]
        )
        assert list(entry["fvu"]) == expected
        assert 0 < entry["fvu_trained"] < 1.2, name
    lines = [json.loads(line)["dictionaries"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in DICTIONARIES:
        assert lines[-1][name]["fvu"] < lines[0][name]["fvu"], name  # they learn
    assert lines[-1]["skip"]["fvu"] < lines[-1]["topk"]["fvu"]


def test_resumed_bit_for_bit(job: Path, run: Path) -> None:
    killed("step", 10 * 14 + 3, job, "name=killed")
    expected, after = contents(run), resume(job.parent / "runs" / "killed")
    assert after.keys() == expected.keys() and [key for key in expected if after[key] != expected[key]] == []
    assert "skip/checkpoints/3072/trainer.safetensors:parameter.W_skip" in expected


def test_dead_features_were_resampled(run: Path) -> None:
    density = sorted((run / "relu" / "density").glob("*.safetensors"))
    events = [load_tensors(file)[0]["event_features"] for file in density]
    assert sum(map(len, events)) > 0


@pytest.mark.parametrize("name", SAELENS)
def test_saelens_predicts_the_same(name: str, run: Path, subjects: dict[str, Subject], rows: dict[str, Tensor]) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    theirs = sae_lens.SAE.load_from_disk(str(run / name / "checkpoints" / "3072"))
    assert type(theirs).__name__ == SAELENS[name]
    subject = subjects[name]
    metadata = theirs.cfg.metadata
    assert (metadata.hook_name, metadata.hook_name_out) == (subject.site.hook_name, subject.written_site.hook_name)
    x, y = rows[subject.site.name], rows[subject.written_site.name]
    position = torch.ones(len(x), dtype=torch.int64)
    with torch.no_grad():
        f = subject.dictionary.encode(subject.space.forward(x, position=position))
        f_theirs = theirs.encode(x)
        same = ((f > 0) == (f_theirs > 0)).all(1)  # but where one is at its threshold
        assert same.float().mean() > 0.98 and (f > 0).any()
        assert (f - f_theirs)[same].norm() < 1e-5 * f[same].norm()
        ours = reconstruct(subject, x, None, position, y).x_hat
        if subject.written.rank < WIDTH:  # what the space cannot see is y's own here, and its mean there
            P = subject.written.matrix @ subject.written.inverse  # type: ignore[operator]
            mean = subject.written.mean - subject.written.mean @ P
            ours = ours @ P + mean
        assert (ours - theirs(x))[same].norm() < 2e-5 * ours[same].norm()


def test_saelens_refuses_what_it_has_no_class_for(run: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    for name, architecture in (
        ("topk", "topk_transcoder"),
        ("skip", "topk_skip_transcoder"),
        ("gated", "gated_transcoder"),
    ):
        folder = run / name / "checkpoints" / "3072"
        assert json.loads((folder / "cfg.json").read_text())["architecture"] == architecture
        with pytest.raises(KeyError, match=architecture):
            sae_lens.SAE.load_from_disk(str(folder))


def test_the_report(run: Path) -> None:
    build_report(run, SMALL)
    for name, settings in DICTIONARIES.items():
        features = FeatureFile.load(run / "analysis" / "features" / f"{name}.safetensors")
        assert (features.meta["site"], features.meta["writes"]) == (settings["site"], settings["writes"]["site"])
        assert features.has_logits and "projection" not in features.arrays
        assert (features.arrays["fires"] > 0).any() and (features.arrays["effect_value"] != 0).any(), name


def test_another_s_transcoder_is_opened_by_its_hooks(tmp_path: Path, model: LanguageModel) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig

    cfg = SkipTranscoderConfig(d_in=WIDTH, d_out=WIDTH, d_sae=24, apply_b_dec_to_input=False)
    theirs = SkipTranscoder(cfg)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    theirs.cfg.metadata = sae_lens.saes.sae.SAEMetadata(
        model_name=str(tiny_model("gpt2")), hook_name="blocks.1.ln2.hook_out", hook_name_out="blocks.1.hook_mlp_out"
    )
    theirs.save_model(str(tmp_path / "theirs"))
    (group,) = open_sources([tmp_path / "theirs"], SMALL)
    subject = group.sources[0].subject
    assert [site.name for site in subject.sites] == ["blocks.1.ln2.hook_out", "mlp_out@1"]
    x = torch.randn(50, WIDTH, generator=g)
    with torch.no_grad():
        ours = reconstruct(subject, x, None, torch.ones(50, dtype=torch.int64), torch.zeros(50, WIDTH)).x_hat
        assert (ours - theirs(x)).norm() < 1e-5 * ours.norm()


def test_a_store_holds_both_sites(tmp_path: Path) -> None:
    few = {"topk": DICTIONARIES["topk"], "batch": DICTIONARIES["batch"], "relu": DICTIONARIES["relu"]}
    cfg = job_config(tmp_path, dictionaries=few)
    store = write_store(cfg, tmp_path / "store", console=Console(file=io.StringIO()))
    assert store is not None
    assert [site.name for site in store.plan.sites] == ["mlp_in@1", "mlp_out@1", "mlp_acts@1"] and store.plan.scale
    cfg = cfg.model_copy(update={"store": str(tmp_path / "store"), "name": "stored"})
    result = run_job(cfg, console=Console(file=io.StringIO()))
    assert result.fidelity is not None and result.fidelity["topk"]["fvu"]["resid_update"] < 1


def test_the_dry_run_counts_both_widths(job: Path) -> None:
    cost = estimate_job(load_config(JobConfig, job)).dictionaries
    wide = 4 * WIDTH
    assert HIDDEN == 64 and cost["topk"].parameters == 2 * 40 * WIDTH + 40 + WIDTH
    assert cost["skip"].parameters == cost["topk"].parameters + WIDTH * WIDTH
    assert cost["acts"].parameters == 40 * (wide + WIDTH) + 40 + WIDTH
    assert cost["jump"].parameters == cost["acts"].parameters + wide * WIDTH + 40


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu", "jumprelu"])
def test_a_step_takes_what_is_said(kind: str, skip: bool) -> None:
    it = {**ACTS, "d_sae": 4096, "architecture": {"kind": kind}, "skip": skip, "b_dec_init": "zero"}
    training = {"batch_size": 512, "tokens": 1000, "selection": "float32"}
    cfg = JobConfig.model_validate({"dictionaries": {"it": it}, "training": training})
    x, y = (torch.randn(512, width, generator=torch.Generator().manual_seed(0)) for width in (128, 32))
    dictionary = small_dictionary(cfg.dictionaries["it"], x, 4096, y)
    said = trained(cfg.dictionaries["it"], 128, cfg, torch.device("cpu"), 32)
    assert said.parameters == sum(4 * p.numel() for p in dictionary.parameters())
    training_step(dictionary, x, target=y, l1=1.0)  # kernels are compiled by now
    counted = peak_of(lambda: training_step(dictionary, x, target=y, l1=1.0))
    assert 0.8 < said.step / counted < 1.35, (said.step, counted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": True, "writes": None}, "skip is for a dictionary that writes elsewhere than it reads"),
        (
            {"site": "mlp_out@1", "space": {}, "writes": {"site": "mlp_in@1", "space": {"kind": "resid"}}},
            "computed before",
        ),
        (
            {"writes": {"site": "mlp_out@0"}},
            "dictionaries.it reads mlp_in@1 and writes mlp_out@0, which is computed bef",
        ),
        (
            {"writes": {"site": "mlp_acts@1"}},
            "writes.space.kind 'resid_update' reads mlp_out or attn_out, but the dict",
        ),
        ({"writes": {"site": "mlp_out@7"}}, "has no site 'mlp_out@7'; nearest: mlp_out@2"),
        ({"writes": {"space": {}}}, "'dictionaries.it.writes.site' is missing"),
        ({"writes": {"site": "mlp_out@1", "spcae": {}}}, "did you mean 'dictionaries.it.writes.space'"),
        (
            {"site": "blocks.1.ln2.hook_out", "writes": {"site": "blocks.1.ln2.hook_in", "space": {"kind": "resid"}}},
            "comp",
        ),
    ],
)
def test_misuse(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_job(job_config(tmp_path, dictionaries={"it": {**TRANSCODER, **changes}}))


def test_null_writes_what_it_reads(tmp_path: Path) -> None:
    cfg = job_config(tmp_path, dictionaries={"it": {"site": "mlp_out@1", "writes": None}})
    assert cfg.dictionaries["it"].writes is None
