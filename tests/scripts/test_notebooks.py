"""The notebooks run as they are, cell by cell, and hold no outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "scripts" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_there_are_no_outputs(path: Path):
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.fixture(scope="module")
def tour() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(ROOT / "scripts" / "notebooks" / "tour.ipynb")):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"tour.ipynb, cell {number}", "exec"), names)
    return names


def test_the_tour_shows_what_it_says(tour: dict[str, Any]):
    assert tour["trained"].metrics[-1]["fvu"] < 0.5
    figures = tour["figures"]
    assert figures["l0"] == pytest.approx(16, abs=0.5) and figures["ce_recovered"]["mean"] > 0.5
    plain, ablated, steered = (tour[name].logits[0, -1].log_softmax(-1) for name in ("plain", "ablated", "steered"))
    favourite = (ablated - plain).argmin()
    assert steered[favourite] > plain[favourite] > ablated[favourite]
    assert tour["run"].features[0, -1, tour["feature"]] > 0
