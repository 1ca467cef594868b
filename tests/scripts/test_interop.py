"""The comparisons of scripts/interop, without any of the libraries."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "interop"))

import round_trips
from trips import report
from trips.compare import compare, distances, from_selection
from trips.peer import Fresh, Peer
from trips.subjects import stretched, trivial, unsubtracted

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.parts import KINDS, put_together, take_apart
from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.dictionaries.formats.support import Architecture
from sae_tools.dictionaries.formats.write import write_dictionary
from tests.dictionaries.formats.examples import example, rows

FAR = 100.0


def four(n: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """(activations, reconstructions, distances) of a made-up dictionary, far from any tie."""
    g = torch.Generator().manual_seed(0)
    f = (torch.randn(n, 8, generator=g) - 0.3).relu() + 0.1 * torch.eye(8)[torch.arange(n) % 8]
    return f, torch.randn(n, 5, generator=g), torch.full_like(f, FAR)


def test_the_same_is_the_same() -> None:
    f, out, distance = four()
    found = compare(f, out, f * (1 + 5e-6), out * (1 - 5e-6), distance)
    assert found.ok and (found.rows, found.equal, found.tied, found.near) == (100, 100, 0, 0)
    assert found.activations == pytest.approx(5e-6, rel=0.1) and found.l0 == (f > 0).sum().item() / 100


def test_one_row_is_enough_to_fail() -> None:
    f, out, distance = four()
    for changed in ("f", "out"):
        a, b = f.clone(), out.clone()
        (a if changed == "f" else b)[17] *= 1 + 3e-5
        found = compare(a, b, f, out, distance)
        assert not found.ok and found.equal == 100
    b = out.clone()
    b[3, 1] = torch.nan
    assert not compare(f, b, f, out, distance).ok


def test_another_feature_fails_unless_it_is_at_a_tie() -> None:
    f, out, distance = four()
    other, x_hat = f.clone(), out.clone()
    off = int((f[5] == 0).nonzero()[0])
    other[5, off], x_hat[5] = 1e-3, x_hat[5] + 1
    found = compare(other, x_hat, f, out, distance)
    assert not found.ok and found.different == 1 and found.tied == 0
    distance[5, off] = 0.5
    found = compare(other, x_hat, f, out, distance)  # whose reconstruction is then not looked at
    assert found.ok and (found.different, found.tied, found.near) == (0, 1, 1)
    other[:2, :] += 1.0  # and there is a limit to how many
    distance[:] = 0.5
    assert not compare(other, x_hat, f, out, distance).ok


def test_nothing_active_is_no_agreement_and_shapes_must_match() -> None:
    f, out, distance = four()
    assert not compare(0 * f, out, 0 * f, out, distance).ok
    with pytest.raises(ValueError, match="shapes differ"):
        compare(f, out, f[:, :7], out, distance)


def active_after(dictionary: Dictionary, x: Tensor, change: Tensor) -> Tensor:
    """Which features are active when pre-activations are moved, in float64."""
    parts = take_apart(dictionary)
    moved = replace(parts, b_enc=parts.b_enc.double() + change)
    if "b_mag" in parts.features:  # the magnitude has the encoder's pre-activation without its bias
        b_mag = parts.features["b_mag"].double() + change * parts.features["r_mag"].double().exp()
        moved = replace(moved, features={**parts.features, "b_mag": b_mag})
    return put_together(moved).double().encode(x.double()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_distances_say_when_a_feature_switches(kind: str) -> None:
    """Against brute force: move one feature's pre-activation by less and by more than its distance."""
    dictionary, x = example(kind), rows(n=20)
    distance = distances(dictionary, x)
    parts = take_apart(dictionary)
    size = x.abs() + (parts.b_dec.abs() if parts.subtract_b_dec else 0)
    unit = 1e-6 * (size.double() @ parts.encoder.double().abs().T + parts.b_enc.double().abs())
    unit = 2 * unit.amax(-1, keepdim=True).expand_as(unit) if kind == "topk" else unit
    slack = 1.5 if kind == "gated" else 1.0  # b_mag has a rounding of its own there
    active = dictionary.double().encode(x.double()) > 0
    dictionary = example(kind)
    for row in range(4):
        for feature in range(0, 40, 3):
            step = torch.zeros(40, dtype=torch.float64)
            step[feature] = -1.0 if active[row, feature] else 1.0
            far = float((distance * unit)[row, feature]) * slack
            switched = [
                bool(active_after(dictionary, x[row : row + 1], step * share * far)[0, feature] != active[row, feature])
                for share in (0.99 / slack if kind != "gated" else 0.5, 1.01)
            ]
            assert switched == [False, True], (kind, row, feature)


def test_the_distance_to_the_next_of_the_k_largest() -> None:
    pre = torch.tensor([[5.0, 3.0, 2.9, -1.0], [4.0, -1.0, -2.0, -3.0]], dtype=torch.float64)
    expected = [[2.1, 0.1, 0.1, 4.0], [4.0, 1.0, 2.0, 3.0]]
    assert torch.allclose(from_selection(pre, 2), torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(from_selection(pre, 4), pre.abs())


def test_what_is_not_trained_is_seen() -> None:
    dictionary = example("gated")
    assert trivial(stretched(dictionary)) == [] and trivial(dictionary) == []
    parts = take_apart(dictionary)
    plain = put_together(replace(parts, features={**parts.features, "r_mag": torch.zeros(40)}))
    assert trivial(plain) == ["r_mag"]
    x = rows()
    assert torch.allclose(unsubtracted(dictionary)(x), dictionary(x), atol=1e-4)
    assert not unsubtracted(dictionary).subtract_b_dec


class Library(ModuleType):
    """A library that is ourselves, with something wrong with it."""

    def __init__(self, wrong: str | None = None):
        super().__init__("library")
        self.wrong = wrong

    def load(self, path: Path) -> Peer:
        if self.wrong == "loader":
            raise RuntimeError("no GPU here")
        dictionary = load_dictionary(path, fold_decoder_norm=False).requires_grad_(False)
        if self.wrong == "threshold":
            parts = take_apart(dictionary)
            dictionary = put_together(replace(parts, features={"threshold": parts.features["threshold"] + 0.05}))
        dictionary.metadata = {"activation_unit": "of the file"}

        def save(path: Path) -> None:
            parts = take_apart(dictionary)
            changed = replace(parts, b_dec=parts.b_dec * (1.001 if self.wrong == "saving" else 1))
            write_dictionary(put_together(changed), path, metadata=dictionary.metadata)

        return Peer("Mine", dictionary.encode, dictionary, dictionary.decoder_norms, save)

    def fresh(self, bench: Any, folder: Path) -> Any:
        write_dictionary(example("jumprelu"), folder / "a", metadata={"hook_name": "here"})
        hook = "there" if self.wrong == "metadata" else "here"
        yield Fresh(Architecture("jumprelu"), "a", folder / "a", self.load(folder / "a"), "x", {"hook_name": hook})
        if self.wrong == "trainer":
            raise RuntimeError("its trainer fails")


class Rows:
    def compared(self, site: str) -> Tensor:
        return rows()


def trips(wrong: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(round_trips, "import_module", lambda name: Library(wrong))
    both = round_trips.there_and_back(
        example("jumprelu"), Architecture("jumprelu"), "saelens", "as it is", rows(), tmp_path / "in", {}
    )
    found = list(both)
    (tmp_path / "out").mkdir()
    return found + list(round_trips.of_theirs(Rows(), "saelens", tmp_path / "out"))  # type: ignore[arg-type]


def test_a_good_library_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trips(None, tmp_path, monkeypatch)
    assert [r["direction"] for r in found] == list(report.DIRECTIONS) and all(r["ok"] for r in found)


@pytest.mark.parametrize(
    ("wrong", "failing"),
    [
        ("loader", ["ours → theirs", "fresh → ours"]),
        ("threshold", ["ours → theirs", "fresh → ours"]),
        ("saving", ["theirs → ours"]),
        ("metadata", ["fresh → ours"]),
        ("trainer", ["fresh → ours"]),
    ],
)
def test_every_kind_of_mistake_is_a_failure(
    wrong: str, failing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trips(wrong, tmp_path, monkeypatch)
    assert [r["direction"] for r in found if not r["ok"]] == failing
    text = report.text(found, {"date": "today", "versions": {"torch": "2"}})
    named = "(training)" if wrong == "trainer" else "JumpReLU"
    assert "**different**" in report.table(found) and f"Not: {named}, saelens, {failing[0]}" in text
    assert all(line for line in map(report.line, found))


def test_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trips(None, tmp_path, monkeypatch)
    report.save(found, {"date": "2026-01-01", "versions": {"torch": "2"}}, tmp_path / "report")
    assert "| JumpReLU | saelens | 1 | 1 | 1 | 600 | 600 | 0 |" in (tmp_path / "report" / "README.md").read_text()
    assert '"ok": true' in (tmp_path / "report" / "results.json").read_text()
