"""Names on the hub, with stand-ins for SAELens's registry and for the hub itself: tests use no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae_tools.dictionaries.formats import hub
from sae_tools.dictionaries.formats.read import load_dictionary, read_dictionary
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError
from tests.dictionaries.formats.examples import example, same
from tests.dictionaries.formats.fake_hub import stand_in

REGISTRY: dict[str, Any] = {
    "gpt2-small-res": {
        "repo_id": "somebody/saes",
        "model": "gpt2-small",
        "config_overrides": {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
        "saes": [
            {"id": "blocks.8/hook", "path": "deep/er/blocks.8", "neuronpedia": "gpt2-small/8-res"},
            {"id": "scaled", "path": "scaled", "norm_scaling_factor": 2.0},
        ],
    },
    "pythia": {
        "repo_id": "somebody/dl",
        "conversion_func": "dictionary_learning_1",
        "saes": [{"id": "one", "path": "trainer_0"}],
    },
    "temporal": {"repo_id": "t/t", "conversion_func": "temporal", "saes": [{"id": "x", "path": "x"}]},
}


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub, "_registry", lambda: REGISTRY)
    return stand_in(tmp_path, monkeypatch)


def test_by_release_and_id(the_hub: Path, tmp_path: Path) -> None:
    dictionary = example("relu", unit=True)
    folder = the_hub / "somebody" / "saes" / "deep" / "er" / "blocks.8"
    write_dictionary(dictionary, folder, "saelens", {"model_name": "gpt2-small"})
    (folder / "optimizer.bin").write_bytes(bytes(100))
    read, metadata = read_dictionary("saelens:gpt2-small-res/blocks.8/hook")
    same(read, dictionary)
    assert metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    assert (metadata["release"], metadata["sae_id"]) == ("gpt2-small-res", "blocks.8/hook")
    assert metadata["neuronpedia_id"] == "gpt2-small/8-res" and read.metadata == metadata
    assert metadata["source"] == "saelens:gpt2-small-res/blocks.8/hook"
    assert not list((tmp_path / "cache").rglob("*.bin"))  # nothing but the dictionary is fetched


def test_a_release_of_dictionary_learning(the_hub: Path) -> None:
    dictionary = example("batchtopk", unit=True)
    folder = the_hub / "somebody" / "dl" / "trainer_0"
    write_dictionary(dictionary, folder, "dictionary-learning", {"trainer": {"layer": 8}})
    read = load_dictionary("saelens:pythia/one")
    same(read, dictionary)
    assert read.metadata["hook_name"] == "blocks.8.hook_resid_post"  # where SAELens takes such releases to be
    assert "hook_name" not in load_dictionary("hub:somebody/dl/trainer_0").metadata


def test_a_state_dict_of_dictionary_learning_has_its_configuration_beside_it(the_hub: Path) -> None:
    folder = the_hub / "somebody" / "dl" / "trainer_0"
    write_dictionary(example("topk", unit=True), folder, "dictionary-learning", {"hook_name": "blocks.8.hook_mlp_out"})
    by_file, by_folder = (load_dictionary(f"hub:somebody/dl/trainer_0{file}") for file in ("/ae.pt", ""))
    same(by_file, by_folder)
    assert by_file.metadata["hook_name"] == by_folder.metadata["hook_name"] == "blocks.8.hook_mlp_out"


def test_the_registrys_scale_of_inputs(the_hub: Path) -> None:
    import json

    folder = the_hub / "somebody" / "saes" / "scaled"
    write_dictionary(example("relu", unit=True), folder, "saelens", {})
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, "normalize_activations": "expected_average_only_in"}))
    read = load_dictionary("saelens:gpt2-small-res/scaled", fold_decoder_norm=False)
    import torch

    assert torch.allclose(read.encoder, 2 * example("relu", unit=True).encoder)
    with pytest.raises(UserError, match="needs the factor"):
        load_dictionary("hub:somebody/saes/scaled")


def test_by_repository_and_folder(the_hub: Path) -> None:
    dictionary = example("topk")
    write_dictionary(dictionary, the_hub / "a" / "b" / "layers.3", "sparsify", {})
    (the_hub / "a" / "b" / "config.json").write_text('{"model": "gpt2"}')
    read = load_dictionary("hub:a/b/layers.3")
    same(read, dictionary)
    assert read.metadata["model_name"] == "gpt2" and read.metadata["hook_name"] == "blocks.3.hook_resid_post"
    write_dictionary(dictionary, the_hub / "a" / "c", "saelens", {})
    same(load_dictionary("hub:a/c"), dictionary)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("saelens:gpt2-small-res", "does not name an SAE; expected saelens:RELEASE/SAE_ID"),
        ("saelens:nobody/x", "has no release 'nobody'; hub:OWNER/REPOSITORY/FOLDER needs none"),
        ("saelens:gpt2-small-res/x", "has no SAE 'x'; it has blocks.8/hook, scaled and others, 2 in all"),
        ("saelens:temporal/x", r"stored in a format of its own \(temporal\), which is not read here"),
        ("saelens:pythia/one", r"hub:somebody/dl: cannot be fetched \(404: somebody/dl not found\)"),
        ("hub:a", "does not name a folder; expected hub:OWNER/REPOSITORY/FOLDER"),
        ("hub:a/b/../../c", "does not name a folder"),
        ("hub:a/b/c", "cannot be fetched"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(the_hub: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        load_dictionary(name)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_without_sae_lens_there_is_no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package sae_lens"):
        load_dictionary("saelens:a/b")


def test_saelens_own_registry_is_read_without_importing_it() -> None:
    import sys

    if hub.importlib.util.find_spec("sae_lens") is None:
        pytest.skip("SAELens is not installed")
    imported = "sae_lens" in sys.modules
    place = hub.registered("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert place.repository == "jbloom/GPT2-Small-SAEs-Reformatted" and place.folder == "blocks.8.hook_resid_pre"
    assert ("sae_lens" in sys.modules) == imported
