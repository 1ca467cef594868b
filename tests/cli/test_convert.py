"""`sae-convert`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from sae_tools import load_dictionary
from sae_tools.cli import convert
from sae_tools.dictionaries.formats import export_saelens
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.models.sites import Site
from sae_tools.runs.checkpoints import SPACE
from sae_tools.runs.tensors import save_tensors
from sae_tools.spaces import Space
from tests.cli.commands import Command, in_process, sentence
from tests.dictionaries.formats.examples import D, close, example, rows


@pytest.fixture
def sae_convert(monkeypatch: pytest.MonkeyPatch, capfd) -> Command:
    return in_process("sae-convert", convert.main, monkeypatch, capfd)


def test_the_example_in_the_help(sae_convert: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from a space's coordinates: what is exported acts on the site's activations."""
    monkeypatch.chdir(tmp_path)
    site = Site("mlp_out", 3, "blocks.3.hook_mlp_out", D)
    space = Space("resid_update", site, D, D, "none", 2.0, torch.linspace(-1, 1, D), torch.zeros(D))
    dictionary = example("topk", unit=True)
    checkpoint = Path("runs/quickstart/resid_update/checkpoints/1000448")
    export_saelens(dictionary, space, checkpoint, {"model_name": "bundled", "training_tokens": 1000448})
    arguments = shlex.split(convert.EPILOG.removeprefix("Example: sae-convert "))
    status, out, err = sae_convert(*arguments)
    assert (status, err) == (0, "")
    first, *notes = out.splitlines()
    assert first == f"converted: TopK, 40 features on activations of {D}, for dictionary_learning"
    assert len(notes) == 1 and notes[0].startswith(
        "dictionary_learning does not look at the metadata (activation_unit,"
    )
    read = load_dictionary("converted")
    with torch.no_grad():
        assert close(read.encode(rows()), dictionary.encode(space.forward(rows())))
        assert close(read(rows()), space.lift(dictionary(space.forward(rows()))))
    assert read.metadata["training_tokens"] == 1000448 and "own space" in read.metadata["activation_unit"]
    assert sae_convert("converted", "back", "--to", "saelens")[0] == 0
    status, out, _ = sae_convert("back", "third", "--to", "sparsify")
    assert status == 0 and "kept in cfg.json" in out
    with torch.no_grad():
        assert close(load_dictionary("third")(rows()), read(rows()))


def test_weights_in_a_space_keep_the_space(sae_convert: Command, tmp_path: Path) -> None:
    """A map that differs from token to token cannot be folded; without it nobody could use the weights."""
    site = Site("mlp_out", 3, "blocks.3.hook_mlp_out", D)
    matrix = torch.eye(D)
    space = Space("logit_update", site, D, D, "token", 2.0, torch.zeros(D), torch.zeros(D), matrix, matrix.clone())
    export_saelens(example("topk", unit=True), space, tmp_path / "a", {})
    save_tensors(tmp_path / "a" / SPACE, *space.state())
    status, out, _ = sae_convert(tmp_path / "a", tmp_path / "b", "--to", "saelens")
    assert status == 0 and "coordinates of the space" in out
    assert (tmp_path / "b" / SPACE).read_bytes() == (tmp_path / "a" / SPACE).read_bytes()


def test_what_another_program_makes_of_it_is_said(sae_convert: Command, tmp_path: Path) -> None:
    write_dictionary(example("batchtopk", unit=True), tmp_path / "a", "dictionary-learning", {})
    status, out, _ = sae_convert(tmp_path / "a", tmp_path / "b", "--to", "saelens")
    assert status == 0 and "BatchTopK dictionaries as JumpReLU, with the threshold for every feature." in out


def test_mistakes_are_one_sentence(sae_convert: Command, tmp_path: Path) -> None:
    write_dictionary(example("gated"), tmp_path / "gated", "saelens", {})
    there = tmp_path / "gated"
    cases = {
        ("--to", "onnx"): "--to onnx is unknown; expected saelens, dictionary-learning, sparsify.",
        ("--to", "sparsify"): "sparsify has no Gated dictionary; SAELens and dictionary_learning have one.",
    }
    for options, said in cases.items():
        assert sentence(sae_convert(there, tmp_path / "new", *options), "sae-convert") == said
    assert not (tmp_path / "new").exists()
    assert "is not an empty folder" in sentence(sae_convert(there, there, "--to", "saelens"), "sae-convert")
    nowhere = sentence(sae_convert(tmp_path / "x", tmp_path / "new", "--to", "saelens"), "sae-convert")
    assert "no such file or folder" in nowhere
    assert "--to" in sentence(sae_convert(there, tmp_path / "new"), "sae-convert")
    assert "name an SAE" in sentence(sae_convert("saelens:one", tmp_path / "new", "--to", "saelens"), "sae-convert")


def test_help_shows_the_example(sae_convert: Command) -> None:
    status, out, _ = sae_convert("--help")
    assert status == 0 and " ".join(convert.EPILOG.split()) in " ".join(out.split())
