"""Every architecture through the files of every format that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_tools import load_dictionary, save_dictionary
from sae_tools.dictionaries.formats.local import format_at
from sae_tools.dictionaries.formats.parts import KINDS, take_apart
from sae_tools.dictionaries.formats.read import read_dictionary
from sae_tools.dictionaries.formats.support import FORMATS, MATRIX, Architecture, architecture_of, table
from sae_tools.dictionaries.formats.units import FOLDED
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError
from tests.dictionaries.formats.examples import example, same

METADATA: dict[str, Any] = {"model_name": "tiny", "hook_name": "blocks.2.hook_mlp_out", "context_size": 32}
EVERY = [Architecture(kind, *variant) for kind in KINDS for variant in ((False, False), (True, False), (True, True))]


def made(architecture: Architecture, where: str = "saelens", **settings: Any):
    """A dictionary of it; transcoders as wide as `where` has them."""
    if architecture.transcoder:
        settings = {"subtract": False, "d_out": 12 if where == "sparsify" else 9, **settings}
    return example(architecture.kind, skip=architecture.skip, **settings)


def test_a_unit_that_was_said_holds_until_norms_are_folded(tmp_path: Path) -> None:
    """What a file says of its activations' unit does not outlive the rescaling of its features."""
    dictionary = example("relu", unit=False)
    dictionary.metadata = {"activation_unit": "millivolts"}
    save_dictionary(dictionary, tmp_path / "theirs", "dictionary-learning")
    for fold, unit in ((False, "millivolts"), (True, FOLDED), (None, FOLDED)):
        read = load_dictionary(tmp_path / "theirs", fold_decoder_norm=fold)
        kept = bool((read.decoder_norms - dictionary.decoder_norms).abs().max() < 1e-5)
        assert read.metadata["activation_unit"] == unit and kept == (unit == "millivolts")


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("where", FORMATS)
@pytest.mark.parametrize("architecture", EVERY, ids=lambda a: a.label)
def test_what_is_written_is_read(architecture: Architecture, where: Any, unit: bool, tmp_path: Path) -> None:
    dictionary = made(architecture, where, unit=unit)
    metadata = {**METADATA, **({"hook_name_out": "blocks.2.hook_resid_post"} if architecture.transcoder else {})}
    assert architecture_of(dictionary, metadata) == architecture
    if (architecture, where) not in MATRIX:
        with pytest.raises(UserError, match=f"^{FORMATS[where]} has no {architecture.label} dictionary; .*\\.$"):
            write_dictionary(dictionary, tmp_path / "out", where, metadata)
        assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())
        return
    write_dictionary(dictionary, tmp_path / "out", where, metadata)
    assert format_at(tmp_path / "out") == where
    again, said = read_dictionary(tmp_path / "out")
    folded = KINDS[architecture.kind].rescales and not unit
    same(again, dictionary, folded=folded)
    assert architecture_of(again, said) == architecture
    assert again.metadata == said and {key: said[key] for key in metadata} == metadata
    assert (said["d_in"], said["d_sae"], said["d_out"]) == (dictionary.d_in, 40, dictionary.d_out)
    assert said["format"] == where
    norms = (again.decoder_norms - 1).abs().max() < 1e-5
    assert norms == (folded or unit) and ("norm 1" in said["activation_unit"]) == norms
    for name in ("k", "widths", "threshold"):
        if name in KINDS[architecture.kind].settings:
            assert getattr(again, name) == getattr(dictionary, name)

    # Once more, in all formats, and nothing changes any more.
    for other in FORMATS:
        if (architecture, other) in MATRIX and not (other == "sparsify" and again.d_in != again.d_out):
            save_dictionary(again, tmp_path / other, other)
            third = load_dictionary(tmp_path / other)
            same(third, again)
            assert third.metadata["activation_unit"] == said["activation_unit"]
            assert third.metadata["hook_name"] == METADATA["hook_name"]


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("where", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_with_and_without_the_decoder_bias_in_the_encoder(
    kind: str, where: Any, subtract: bool, tmp_path: Path
) -> None:
    if (Architecture(kind), where) in MATRIX:
        dictionary = example(kind, subtract=subtract, unit=True)
        write_dictionary(dictionary, tmp_path / "out", where, METADATA)
        same(load_dictionary(tmp_path / "out"), dictionary)


def test_a_skip_connection_beside_a_subtracted_bias(tmp_path: Path) -> None:
    for where in ("saelens", "sparsify"):
        for kind in ("topk",) if where == "sparsify" else ("relu", "jumprelu", "batchtopk"):
            dictionary = example(kind, skip=True, unit=True)
            write_dictionary(dictionary, tmp_path / where / kind, where, METADATA)
            same(load_dictionary(tmp_path / where / kind), dictionary)


def test_transcoders_of_unequal_widths_are_none_of_sparsifys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="equal widths only; this one reads 12 and writes 9 numbers"):
        write_dictionary(example("topk", d_out=9), tmp_path / "out", "sparsify", METADATA)


def test_decoder_norms_are_folded_only_where_nothing_changes(tmp_path: Path) -> None:
    for kind, known in KINDS.items():
        dictionary = example(kind)
        dictionary.metadata = {"activation_unit": "as it is"}  # so that writing leaves the norms alone
        write_dictionary(dictionary, tmp_path / kind, "dictionary-learning")
        read = load_dictionary(tmp_path / kind, fold_decoder_norm=False)
        assert torch.allclose(read.decoder_norms, dictionary.decoder_norms)
        same(read, dictionary)
        folded = load_dictionary(tmp_path / kind)
        assert torch.allclose(folded.decoder_norms, torch.ones(40)) == known.rescales
        same(folded, dictionary, folded=known.rescales)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for destination in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="is not an empty folder"):
            write_dictionary(example("relu"), destination)
    (tmp_path / "empty").mkdir()
    write_dictionary(example("relu"), tmp_path / "empty")
    with pytest.raises(UserError, match="'onnx' is unknown; expected saelens, dictionary-learning, sparsify"):
        write_dictionary(example("relu"), tmp_path / "new", "onnx")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be written as JSON"):
        write_dictionary(example("relu"), tmp_path / "new", metadata={"a": {1, 2}})
    assert not (tmp_path / "new").exists()


def test_nothing_recognised_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    looked_for = "cfg.json with sae_weights.safetensors .SAELens., ae.pt .* sae.safetensors"
    with pytest.raises(UserError, match=f"holds no dictionary; looked for {looked_for}"):
        load_dictionary(tmp_path)
    with pytest.raises(UserError, match=f"notes.txt is no dictionary: give a folder with {looked_for}"):
        load_dictionary(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no such file or folder"):
        load_dictionary(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="is a run: name one of its checkpoint folders"):
        load_dictionary(tmp_path)


def test_taking_apart_and_putting_together_knows_every_architecture() -> None:
    for kind in KINDS:
        parts = take_apart(example(kind))
        assert parts.kind == kind and set(parts.features) == set(KINDS[kind].features)


def test_the_readme_shows_the_matrix() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert table() in readme, table()
