"""The bundled model, and a job on it as the quickstart's, only shorter: what others read must be what we trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae_tools.activations.harvest import Harvester, collect_rows
from sae_tools.config import JobConfig, RowsConfig
from sae_tools.config_loading import load_config
from sae_tools.data.stream import ContextStream
from sae_tools.dictionaries import Dictionary, build_dictionary
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Rows
from sae_tools.runs.directory import RunDirectory
from sae_tools.runs.tensors import load_tensors
from sae_tools.spaces import Space
from sae_tools.training.run import run_job
from sae_tools.training.start import resume_job

ROOT = Path(__file__).resolve().parent.parent
ROWS = 8192
SHORT = [
    "training.tokens=30_000", "training.checkpoints=1", "training.estimate_rows=4096", "buffer.rows=8192",
    "fidelity.tokens=2048", "tracking.density_windows=4",
]  # fmt: skip
for name in ("mlp_acts", "resid_update", "logit_update"):
    SHORT.append(f"dictionaries.{name}.d_sae=512")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model("bundled")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> JobConfig:
    runs = tmp_path_factory.mktemp("runs")
    return load_config(JobConfig, ROOT / "configs" / "quickstart.yaml", [*SHORT, f"runs_dir={runs}"])


@pytest.fixture(scope="module")
def run(job: JobConfig, model: LanguageModel) -> RunDirectory:
    return run_job(job, model=model).run


@pytest.fixture(scope="module")
def rows(job: JobConfig, model: LanguageModel) -> Rows:
    """8,192 real rows, held out."""
    stream = ContextStream(job.data, model.tokenizer, split="heldout", batch=8, bos_token_id=model.bos_token_id)
    sites = [resolve_site(model, site) for site in ("mlp_acts@3", "mlp_out@3")]
    return collect_rows(stream, Harvester(model, sites, RowsConfig()), ROWS)


@pytest.mark.parametrize("name", ["mlp_acts", "resid_update", "logit_update"])
def test_sae_lens_loads_every_checkpoint_and_computes_the_same(
    run: RunDirectory, job: JobConfig, rows: Rows, name: str
):
    sae_lens = pytest.importorskip("sae_lens", reason="sae_lens is not installed beside transformer_lens 4")
    # Our side is the state that training goes on from, not the exported file.
    for tokens in run.checkpoint_tokens(name):
        sae = sae_lens.SAE.load_from_disk(str(run.checkpoint(name, tokens)))
        x = rows.activations[job.dictionaries[name].site]
        assert x.shape[0] == ROWS
        with torch.no_grad():
            pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
            theirs, their_x = sae.encode(x), sae.decode(sae.encode(x))
        top = pre.topk(33, dim=-1).values
        clear = (top[:, 31] - top[:, 32]).abs() > 1e-4 * top[:, 31].abs()
        assert clear.float().mean() > 0.95
        space = Space.from_state(*load_tensors(run.checkpoint(name, tokens) / "space.safetensors"))
        dictionary = trained_dictionary(run, job, name, tokens)
        with torch.no_grad():
            z = space.forward(x)
            ours = dictionary.encode(z)
            our_x = space.lift(dictionary.decode(ours))
        assert bool(((ours > 0) == (theirs > 0))[clear].all())
        error = (our_x - their_x)[clear].norm(dim=-1) / our_x[clear].norm(dim=-1)
        assert error.max() < 1e-5


def trained_dictionary(run: RunDirectory, job: JobConfig, name: str, tokens: int) -> Dictionary:
    """What --resume would go on with; of the two newest checkpoints, and there are no more here."""
    path = run.checkpoint(name, tokens) / "trainer.safetensors"
    tensors, _ = load_tensors(path)
    cfg = job.dictionaries[name].model_copy(update={"b_dec_init": "zero"})
    dictionary = build_dictionary(cfg, tensors["parameter.b_dec"].shape[0], torch.Generator())
    dictionary.load_state_dict(
        {k.removeprefix("parameter."): v for k, v in tensors.items() if k.startswith("parameter.")}
    )
    return dictionary


def test_a_finished_run_resumes_to_nothing_but_its_figures(run: RunDirectory, model: LanguageModel):
    job = resume_job(run.path, model=model)
    assert job.step == job.steps
