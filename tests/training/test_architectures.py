"""BatchTopK and JumpReLU through a whole job: trained, resumed, read by SAELens, shown in a report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sae_tools.analysis.feature_files import FeatureFile
from sae_tools.analysis.sources import open_sources
from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.config_report import ReportConfig
from sae_tools.dictionaries import BatchTopKDictionary, JumpReLUDictionary
from sae_tools.dictionaries.formats import load_saelens
from sae_tools.report.build import build_report
from sae_tools.report.marker import is_report
from sae_tools.runs.tensors import load_tensors
from sae_tools.training.estimate import estimate_job
from sae_tools.training.run import run_job
from tests.jobs import write_job
from tests.tiny_models import WIDTH, tiny_model
from tests.training.resuming import contents, killed, resume

ARCHITECTURES = {
    "batchtopk": {"kind": "batchtopk", "k": 4, "dead_after_tokens": 600},
    "step": {"kind": "jumprelu", "l0_coefficient": 0.1, "init_threshold": 0.5},
    "quadratic": {"kind": "jumprelu", "penalty": "quadratic", "target_l0": 6, "l0_warmup_steps": 8},
}
LAST = str(24 * 128)
SMALL = ReportConfig(tokens=400, chunk=32, device="cpu")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    common = {"site": "mlp_out@1", "d_sae": 40}
    dictionaries = {name: {**common, "architecture": value} for name, value in ARCHITECTURES.items()}
    return write_job(tmp_path_factory.mktemp("job"), dictionaries=dictionaries, fidelity={"tokens": 600})


@pytest.fixture(scope="module")
def run(job: Path) -> Path:
    return run_job(load_config(JobConfig, job), console=Console(file=io.StringIO())).run.path


def test_metrics_and_checkpoints(run: Path) -> None:
    lines = [json.loads(line)["dictionaries"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["batchtopk"]["smallest_active"] > 0 and line["batchtopk"]["l0"] == pytest.approx(4)
        assert line["step"]["l0_penalty"] == pytest.approx(line["step"]["l0"])
        assert line["quadratic"]["l0_penalty"] >= 0
    untrained, trained = (load_saelens(run / "batchtopk" / "checkpoints" / n)[0] for n in ("0", LAST))
    assert isinstance(untrained, BatchTopKDictionary) and untrained.threshold == 0
    assert isinstance(trained, BatchTopKDictionary) and trained.k == 4
    seen = [line["batchtopk"]["smallest_active"] for line in lines]
    assert trained.threshold.item() == pytest.approx(sum(seen) / len(seen), rel=0.3)
    for name in ("step", "quadratic"):
        thresholds = load_tensors(run / name / "checkpoints" / LAST / "trainer.safetensors")[0]["parameter.threshold"]
        assert (thresholds >= 0).all() and thresholds.std() > 1e-4
    fidelity = json.loads((run / "analysis" / "fidelity.json").read_text())
    assert 2 < fidelity["batchtopk"]["l0"] < 8  # by the threshold, not by the batch


def test_resumed_bit_for_bit(job: Path, run: Path) -> None:
    killed("step", 59, job, "name=killed")
    expected, after = contents(run), resume(job.parent / "runs" / "killed")
    assert after.keys() == expected.keys() and [key for key in expected if after[key] != expected[key]] == []
    assert f"batchtopk/checkpoints/{LAST}/trainer.safetensors:buffer.threshold" in expected


def test_the_report_opens_what_was_trained(run: Path) -> None:
    (group,) = open_sources([run], SMALL)
    kinds = {"batchtopk": BatchTopKDictionary, "step": JumpReLUDictionary, "quadratic": JumpReLUDictionary}
    for source in group.sources:
        dictionary = source.subject.dictionary
        assert type(dictionary) is kinds[source.id]
        trained, _ = load_tensors(source.path / "trainer.safetensors")
        saved = trained["buffer.threshold" if source.id == "batchtopk" else "parameter.threshold"]
        assert torch.equal(dictionary.state_dict()["threshold"], saved)
        assert (dictionary.encoder - trained["parameter.encoder"]).abs().max() < 1e-4


def test_saelens_reconstructs_the_same(run: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    (group,) = open_sources([run], SMALL)
    x = 3 * torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0))
    for source in group.sources:
        theirs = sae_lens.SAE.load_from_disk(str(source.path))
        assert isinstance(theirs, sae_lens.JumpReLUSAE) and theirs.cfg.metadata.hook_name == "blocks.1.hook_mlp_out"
        subject = source.subject
        with torch.no_grad():
            z = subject.space.forward(x)
            f, f_theirs = subject.dictionary.encode(z), theirs.encode(x)
            same = ((f > 0) == (f_theirs > 0)).all(1)  # but where one is at its threshold
            assert same.float().mean() > 0.98 and (f > 0).any()
            assert (f - f_theirs)[same].norm() < 1e-5 * f[same].norm()
            ours = subject.space.lift(subject.dictionary.decode(f))
            assert (ours - theirs(x))[same].norm() < 1e-5 * ours[same].norm()


def test_reports_of_the_run_and_of_saelens_s_own_folder(run: Path, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    sae = sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(d_in=WIDTH, d_sae=24))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(WIDTH, 24, generator=g))
        sae.threshold.copy_(torch.rand(24, generator=g))
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = str(tiny_model("gpt2")), "blocks.1.hook_mlp_out"
    sae.cfg.metadata.context_size, sae.cfg.metadata.dataset_path = 32, "python-stdlib"
    sae.save_inference_model(str(tmp_path / "theirs"))
    page = build_report([run, tmp_path / "theirs"], SMALL, tmp_path / "page.html")
    assert is_report(page)
    (folder,) = {path.parent for path in tmp_path.rglob("job--batchtopk.safetensors")}
    expected = {"job--batchtopk": "batchtopk", "job--step": "jumprelu", "job--quadratic": "jumprelu"}
    for name, architecture in {**expected, "theirs": "jumprelu"}.items():
        features = FeatureFile.load(folder / f"{name}.safetensors")
        assert features.meta["architecture"] == architecture
        assert (features.arrays["fires"] > 0).any() and (features.arrays["effect_value"] != 0).any()


def test_the_dry_run_counts_thresholds(job: Path) -> None:
    cfg = load_config(JobConfig, job)
    parameters = {name: cost.parameters for name, cost in estimate_job(cfg).dictionaries.items()}
    assert parameters["step"] == parameters["quadratic"] == parameters["batchtopk"] + 40
