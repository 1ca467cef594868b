"""Dictionaries that start from an SAE: the same function in the space they are given, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from sae_tools.config import JobConfig
from sae_tools.config_loading import load_config
from sae_tools.dictionaries import BatchTopKDictionary, Dictionary, JumpReLUDictionary, ReLUDictionary, TopKDictionary
from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError
from sae_tools.rows import Rows
from sae_tools.runs.tensors import load_tensors
from sae_tools.spaces import Space
from sae_tools.training.job import Job
from sae_tools.training.loop import next_rows
from sae_tools.training.run import run_job
from sae_tools.training.start import start_job
from sae_tools.training.trainee import Trainee
from tests.jobs import job_config, job_tree

QUIET = Console(quiet=True)
TOPK = {"kind": "topk", "k": 4, "dead_after_tokens": 600}
MORE: dict[str, Any] = {
    "token": {"site": "mlp_out@1", "space": {"kind": "logit_update", "ln": "token"}, "d_sae": 40, "architecture": TOPK},
    "batch": {"site": "attn_out@1", "d_sae": 40, "architecture": {**TOPK, "kind": "batchtopk"}},
    "jump": {"site": "mlp_out@2", "d_sae": 40, "architecture": {"kind": "jumprelu"}, "space": {"centre": "mean"}},
    "gated": {"site": "mlp_out@2", "d_sae": 40, "architecture": {"kind": "gated", "l1": 0.1}},
    "nested": {"site": "mlp_out@2", "d_sae": 40, "architecture": {**TOPK, "kind": "matryoshka", "widths": [8, 40]}},
    "transcoder": {
        "site": "mlp_in@1",
        "space": {"kind": "resid"},
        "writes": {"site": "mlp_out@1", "space": {"kind": "resid_update", "centre": "mean"}},
        "skip": True,
        "d_sae": 40,
        "architecture": TOPK,
    },
    "between": {
        "site": "attn_out@1",
        "space": {"kind": "logit_update", "ln": "mean", "centre": "mean"},
        "writes": {"site": "mlp_out@1", "space": {"kind": "logit_update", "ln": "token", "centre": "mean"}},
        "skip": True,
        "d_sae": 40,
        "architecture": TOPK,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def before(folder: Path) -> Path:
    """A run of dictionaries of every kind."""
    dictionaries = {**job_tree(folder)["dictionaries"], **MORE}
    dictionaries["relu"]["architecture"]["form"] = "decoder-norm"
    cfg = job_config(folder, name="before", dictionaries=dictionaries, fidelity__tokens=100)
    return run_job(cfg, console=QUIET).run.path


def checkpoint(run: Path, name: str) -> Path:
    return run / name / "checkpoints" / "3072"


def start(before: Path, folder: Path, changes: dict[str, dict[str, Any]], **job: Any) -> Job:
    """A job of some of that run's dictionaries, with other settings and a seed that gives other estimates."""
    own = load_config(JobConfig, before / "config.yaml").model_dump(mode="json")["dictionaries"]
    own = {name: {**own[name], "init_from": str(checkpoint(before, name)), **more} for name, more in changes.items()}
    cfg = job_config(folder, **{"name": "after", "seed": 5, "dictionaries": own, "fidelity__tokens": 100, **job})
    return start_job(cfg)


def at_site(trainee: Trainee, rows: Rows) -> tuple[Tensor, Tensor]:
    """(activations, reconstruction at the site that is written, with the mean where a space cannot see)."""
    with torch.no_grad():
        z = trainee.rows_in_space(rows)
        f = trainee.dictionary.encode(z)
        return f, trainee.written.lift(trainee.dictionary.decode(f, z), rows.scale, rows.position)


NAMES = ("acts", "update", "logits", "relu", "batch", "jump", "gated", "nested", "transcoder")


def test_each_does_at_its_site_what_the_file_does(before: Path, folder: Path):
    job = start(before, folder, dict.fromkeys(NAMES, {}))
    rows, _ = next_rows(job)
    for trainee in job.trainees:
        source = load_dictionary(checkpoint(before, trainee.name))
        x = rows.activations[trainee.site.name]
        with torch.no_grad():
            theirs, expected = source.encode(x), source(x)
        f, found = at_site(trainee, rows)
        if trainee.name == "logits":  # what the export cannot know of a row's own direction that no logit sees
            null = trainee.space.null_mean
            assert trainee.space.inverse is not None and trainee.space.matrix is not None
            expected = expected @ trainee.space.matrix @ trainee.space.inverse + null
        assert torch.equal(f > 0, theirs > 0), trainee.name
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (f > 0).any() and type(trainee.dictionary) is type(source)
        if trainee.name == "update":  # another estimate of the space, so another unit
            assert abs((f[f > 0] / theirs[f > 0]).mean().item() - 1) > 1e-5
        assert not trainee.optimiser.state
    fingerprints = (job.cfg.provenance or {})["init_from"]
    assert fingerprints.keys() == set(NAMES) and all(len(value) == 32 for value in fingerprints.values())
    job.close()


def test_weights_of_a_space_go_into_the_same_space_estimated_anew(before: Path, folder: Path):
    job = start(before, folder, {"token": {}})
    (trainee,) = job.trainees
    rows, _ = next_rows(job)
    source = load_dictionary(checkpoint(before, "token"))
    old = start_job(load_config(JobConfig, before / "config.yaml", ["name=old"]))  # the same estimates as that run
    space = next(t.space for t in old.trainees if t.name == "token")
    assert space.scale != trainee.space.scale
    x = rows.activations["mlp_out@1"]
    with torch.no_grad():
        expected = space.lift(source(space.read(rows)), rows.scale, rows.position, x)
        found = trainee.space.lift(trainee.dictionary(trainee.space.read(rows)), rows.scale, rows.position, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    job.close()
    old.close()
    with pytest.raises(UserError, match="no fixed map to the dictionary's logit_update with ln 'mean'"):
        start(before, folder, {"token": {"space": {"kind": "logit_update", "ln": "mean"}}})
    with pytest.raises(UserError, match="no fixed map to the dictionary's resid_update"):
        start(before, folder, {"token": {"space": {"kind": "resid_update"}}})


def test_weights_between_two_spaces_go_into_the_same_two(before: Path, folder: Path, tmp_path: Path):
    job = start(before, folder, {"between": {}})
    (trainee,) = job.trainees
    rows, _ = next_rows(job)
    path = checkpoint(before, "between")
    source = load_dictionary(path)
    read, written = (
        Space.from_state(*load_tensors(path / name)) for name in ("space.safetensors", "target_space.safetensors")
    )
    assert trainee.target_space is not None and read.inverse_sigma != trainee.space.inverse_sigma
    assert read.scale != trainee.space.scale and written.scale != trainee.target_space.scale
    y = rows.activations["mlp_out@1"]
    with torch.no_grad():
        z, theirs = trainee.space.read(rows), source.encode(read.read(rows))
        expected = written.lift(source(read.read(rows)), rows.scale, rows.position, y)
        found = trainee.target_space.lift(trainee.dictionary(z), rows.scale, rows.position, y)
        assert torch.equal(trainee.dictionary.encode(z) > 0, theirs > 0) and (theirs > 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    job.close()
    own = MORE["between"]
    written_elsewhere = {"site": "mlp_out@1", "space": {"kind": "logit_update", "ln": "mean"}}
    lost = shutil.copytree(path, tmp_path / "lost")
    (lost / "target_space.safetensors").unlink()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"writes": written_elsewhere}, "target_space.safetensors: the weights were trained in .* with ln 'token', wh"),
        ({"space": {"kind": "resid_update"}}, "/space.safetensors: .* no fixed map to the dictionary's resid_update"),
        ({"writes": None, "skip": False, "space": own["space"]}, "writes mlp_out@1, but the dictionary attn_out@1"),
        ({"init_from": str(lost)}, "the weights are those of a space, and its target_space.safetensors is missing"),
    ]
    for changes, message in wrong:
        with pytest.raises(UserError, match=r"^dictionaries.between.init_from: .*" + message):
            start(before, folder, {"between": changes})


def random_tensors(d: int = 32, d_sae: int = 40) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(3)
    encoder, W_dec = torch.randn(d_sae, d, generator=g), torch.randn(d_sae, d, generator=g)
    return encoder, torch.randn(d_sae, generator=g), W_dec * (0.2 + torch.rand(d_sae, 1, generator=g)), torch.randn(d)


def saved(folder: Path, dictionary: Dictionary, to: str = "saelens", **metadata: Any) -> str:
    path = folder / f"sae-{len(list(folder.glob('sae-*')))}"
    write_dictionary(dictionary, path, to=to, metadata=metadata)  # type: ignore[arg-type]
    return str(path)


@pytest.mark.parametrize("form", ["unit-norm", "decoder-norm"])
def test_an_sae_with_any_decoder_norms_starts_either_form(before: Path, folder: Path, form: str, tmp_path: Path):
    sae = ReLUDictionary(*random_tensors(), form="decoder-norm")
    path = saved(tmp_path, sae, hook_name="blocks.1.hook_mlp_out")
    job = start(before, folder, {"relu": {"init_from": path, "architecture": {"kind": "relu", "form": form}}})
    rows, _ = next_rows(job)
    with torch.no_grad():
        expected = sae(rows.activations["mlp_out@1"])
    torch.testing.assert_close(at_site(job.trainees[0], rows)[1], expected, rtol=1e-4, atol=1e-3)
    norms = job.trainees[0].dictionary.decoder_norms
    assert (form == "unit-norm") == torch.allclose(norms, torch.ones(40), atol=1e-5)
    job.close()


def test_an_sae_of_others_in_the_metric_of_the_logits(before: Path, folder: Path, tmp_path: Path):
    """Of what the space cannot see the encoder gets the mean."""
    sae = ReLUDictionary(*random_tensors(), form="decoder-norm")
    path = saved(tmp_path, sae)
    job = start(before, folder, {"logits": {"init_from": path, "d_sae": 40, "architecture": {"kind": "relu"}}})
    (trainee,) = job.trainees
    rows, _ = next_rows(job)
    matrix, inverse = trainee.space.matrix, trainee.space.inverse
    assert matrix is not None and inverse is not None
    x = rows.activations["mlp_out@2"] @ matrix @ inverse + trainee.space.null_mean
    with torch.no_grad():
        expected = sae(x) @ matrix @ inverse + trainee.space.null_mean
    torch.testing.assert_close(at_site(trainee, rows)[1], expected, rtol=1e-3, atol=2e-3)
    job.close()


def test_one_threshold_for_all_is_batchtopk(before: Path, folder: Path, tmp_path: Path):
    encoder, b_enc, W_dec, b_dec = random_tensors()
    tensors = (encoder, b_enc, torch.nn.functional.normalize(W_dec, dim=-1), b_dec)
    sae = JumpReLUDictionary(*tensors, torch.full((40,), 1.5))
    architecture = {**TOPK, "kind": "batchtopk"}
    job = start(
        before, folder, {"update": {"init_from": saved(tmp_path, sae), "d_sae": 40, "architecture": architecture}}
    )
    (trainee,) = job.trainees
    rows, _ = next_rows(job)
    assert isinstance(trainee.dictionary, BatchTopKDictionary)
    with torch.no_grad():
        torch.testing.assert_close(at_site(trainee, rows)[1], sae(rows.activations["mlp_out@1"]), rtol=1e-4, atol=1e-4)
    job.close()
    sae = JumpReLUDictionary(*tensors, torch.rand(40))
    with pytest.raises(UserError, match="has a threshold for each feature, and batchtopk has one for all"):
        start(
            before, folder, {"update": {"init_from": saved(tmp_path, sae), "d_sae": 40, "architecture": architecture}}
        )


def test_what_does_not_fit_is_refused_before_there_is_a_run(before: Path, folder: Path, tmp_path: Path):
    runs = set((folder / "runs").iterdir())
    other = saved(tmp_path, TopKDictionary(*random_tensors(), k=4))
    acts = {"site": "mlp_acts@1", "space": {"kind": "mlp_acts"}, "d_sae": 40}
    damaged = shutil.copytree(checkpoint(before, "update"), tmp_path / "damaged")
    os.truncate(damaged / "sae_weights.safetensors", 1000)
    wrong: list[tuple[dict[str, dict[str, Any]], str]] = [
        ({"update": {"architecture": {"kind": "relu"}}}, "is a topk dictionary, whose weights mean nothing to relu"),
        ({"update": {"d_sae": 48}}, "has 64 features, but d_sae is 48"),
        ({"update": {"site": "mlp_out@2"}}, "reads mlp_out@1, but the dictionary mlp_out@2"),
        ({"update": {"init_from": other, **acts}}, "reads 32 dimensions, but mlp_acts@1 has 128"),
        ({"update": {"init_from": str(tmp_path / "nothing")}}, "there is no such file or folder"),
        ({"update": {"init_from": str(damaged)}}, "sae_weights.safetensors"),
        ({"token": {"init_from": str(checkpoint(before, "update")), "d_sae": 64}}, "no fixed map to a space with ln"),
        ({"transcoder": {"skip": False}}, "has a skip connection, and skip is not set"),
        ({"nested": {"architecture": {**TOPK, "kind": "matryoshka", "widths": [4, 40]}}}, r"nests \[8, 40\] features"),
    ]
    for changes, message in wrong:
        with pytest.raises(UserError, match=rf"^dictionaries.{next(iter(changes))}.init_from: .*{message}"):
            start(before, folder, changes)
    assert set((folder / "runs").iterdir()) == runs


def test_k_is_the_jobs(before: Path, folder: Path):
    job = start(before, folder, {"update": {"architecture": {**TOPK, "k": 7}}})
    dictionary = job.trainees[0].dictionary
    assert isinstance(dictionary, TopKDictionary) and dictionary.k == 7
    job.close()


def test_a_resumed_run_needs_no_file(before: Path, folder: Path, tmp_path: Path):
    copy = tmp_path / "sae"
    shutil.copytree(checkpoint(before, "update"), copy)
    job = start(before, folder, {"update": {"init_from": str(copy)}}, name="resumed")
    started = job.trainees[0].dictionary.encoder.detach().clone()
    cfg = job.cfg.model_copy(update={"name": "whole", "provenance": None})
    job.close()
    calls = iter(range(100))
    stopped = run_job(cfg, should_stop=lambda: next(calls) == 9, console=QUIET).run.path
    shutil.rmtree(copy)
    result = run_job(load_config(JobConfig, stopped / "config.yaml"), resume=stopped, console=QUIET)
    assert result.fidelity is not None
    final = load_dictionary(checkpoint(stopped, "update")).encoder
    assert not torch.equal(final, started)
