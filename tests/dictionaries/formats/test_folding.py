"""Two-site dictionaries and skip connections between spaces and sites; SAEs are in test_saelens.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_tools.dictionaries.formats import export_saelens, load_saelens, unfold
from sae_tools.dictionaries.formats.folding import fold, with_subtraction, without_subtraction
from sae_tools.dictionaries.formats.parts import KINDS, put_together, take_apart
from sae_tools.models.sites import Site
from sae_tools.spaces import Space
from tests.dictionaries.formats.examples import close, example

READ, WRITTEN = 16, 12


def a_space(kind: str, width: int, seed: int, *, singular: bool = False) -> Space:
    """An affine map with a matrix; singular: one direction of the site is not seen."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64))[0] * 1.7
    if singular:
        matrix = (torch.eye(width, dtype=torch.float64) - 1 / width) @ matrix
    inverse = torch.linalg.pinv(matrix)
    centre, mean = torch.randn(width, generator=g), torch.randn(width, generator=g)
    site = Site("mlp_out", 2, "blocks.2.hook_mlp_out", width)
    rank = width - singular
    return Space(kind, site, width, rank, "none", 2.5, centre, mean, matrix.float(), inverse.float())


CASES = [(kind, skip, subtract) for kind in KINDS for skip in (False, True) for subtract in (False, True)]


@pytest.mark.parametrize(("kind", "skip", "subtract"), CASES)
def test_of_one_space_with_and_without_a_skip(kind: str, skip: bool, subtract: bool, tmp_path: Path) -> None:
    space = a_space("resid_update", READ, 1, singular=True)
    dictionary = example(kind, d_in=READ, d_out=READ, skip=skip, subtract=subtract)
    x = torch.randn(300, READ, generator=torch.Generator().manual_seed(2))
    x = space.lift(space.forward(x))  # rows that the space sees all of
    with torch.no_grad():
        z = space.forward(x)
        f = dictionary.encode(z) * (dictionary.decoder_norms if KINDS[kind].rescales else 1)
        output = space.lift(dictionary(z))
        folded = put_together(fold(dictionary, space))
        assert folded.subtract_b_dec == subtract
        assert close(folded.encode(x), f, 3e-5) and close(folded(x), output, 3e-5)
        again = unfold(folded, space)
        assert close(again.encode(z), f, 3e-5) and close(space.lift(again(z)), output, 3e-5)
        export_saelens(dictionary, space, tmp_path, {})
        read, metadata = load_saelens(tmp_path)
        assert close(read.encode(x), f, 3e-5) and close(read(x), output, 3e-5)
        assert ("transcoder" in metadata["architecture"]) == skip and type(read) is type(dictionary)


@pytest.mark.parametrize(("kind", "skip"), [(kind, skip) for kind in KINDS for skip in (False, True)])
@pytest.mark.parametrize("equal", [False, True])
def test_from_one_space_to_another(kind: str, skip: bool, equal: bool, tmp_path: Path) -> None:
    space, writes = a_space("mlp_acts", READ, 1), a_space("resid_update", READ if equal else WRITTEN, 4)
    dictionary = example(kind, d_in=READ, d_out=writes.dim, skip=skip, subtract=equal)
    x = torch.randn(300, READ, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = space.forward(x)
        f = dictionary.encode(z) * (dictionary.decoder_norms if KINDS[kind].rescales else 1)
        output = writes.lift(dictionary(z))
        export_saelens(dictionary, space, tmp_path, {"tokens": 5}, writes=writes)
        read, metadata = load_saelens(tmp_path)
        assert type(read) is type(dictionary) and not read.subtract_b_dec
        assert close(read.encode(x), f, 3e-5) and close(read(x), output, 3e-5)
        again = unfold(read, space, writes)
        assert close(again.encode(z), f, 3e-5) and close(writes.lift(again(z)), output, 3e-5)
    assert metadata["hook_name_out"] == metadata["hook_name"] == "blocks.2.hook_mlp_out"  # the stand-in's site
    assert metadata["space_out"]["kind"] == "resid_update" and "transcoder" in metadata["architecture"]


def test_moving_the_decoder_bias_in_and_out_of_the_encoder() -> None:
    x = torch.randn(200, READ, generator=torch.Generator().manual_seed(2))
    for kind in KINDS:
        dictionary = example(kind, d_in=READ, d_out=READ)
        parts: Any = take_apart(dictionary)
        with torch.no_grad():
            moved = put_together(without_subtraction(parts))
            assert not moved.subtract_b_dec and close(moved.encode(x), dictionary.encode(x))
            back = put_together(with_subtraction(take_apart(moved)))
            assert back.subtract_b_dec and close(back.b_enc, dictionary.b_enc)
            assert close(moved(x), dictionary(x)) and close(back(x), dictionary(x))
