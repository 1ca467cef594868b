"""A dictionary that writes elsewhere than it reads, in the browser: every view, and what it has no figures for."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed")

from playwright.sync_api import expect  # noqa: E402

from tests.report.browser.reports import measured, trained  # noqa: E402
from tests.report.browser.test_views import check_view  # noqa: E402

TRANSCODER = {
    "site": "mlp_in@1",
    "space": {"kind": "resid"},
    "writes": {"site": "mlp_out@1", "space": {"kind": "resid_update"}},
    "d_sae": 24,
    "skip": True,
    "architecture": {"kind": "topk", "k": 4},
}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-sites")
    sae = {"site": "mlp_out@1", "d_sae": 24, "architecture": {"kind": "topk", "k": 4}}
    return measured(folder / "report.html", trained(folder, dictionaries={"it": TRANSCODER, "sae": sae})).page


def test_every_view(page_file: Path, look) -> None:
    page = look(page_file, "#/run")
    expect(page.get_by_test_id("panel-run")).to_contain_text("mlp_in@1 → mlp_out@1")
    expect(page.get_by_test_id("panel-run")).to_contain_text("resid → resid_update")
    check_view(page, "run")
    check_view(look(page_file, "#/spaces"), "spaces")
    for view in ("density", "features"):
        check_view(look(page_file, f"#/{view}?d=it"), view)
    page = look(page_file, "#/feature/it/3")
    check_view(page, "feature")
    summary = page.get_by_test_id("panel-summary")
    expect(summary).to_contain_text("mlp_out@1")
    expect(summary).to_contain_text("space resid_update")
    expect(summary).not_to_contain_text("Encoder · decoder")
    expect(look(page_file, "#/feature/sae/3").get_by_test_id("panel-summary")).to_contain_text("Encoder · decoder")


def test_what_an_sae_has_stays(page_file: Path, look) -> None:
    for name, columns in (("sae", 1), ("it", 0)):
        page = look(page_file, f"#/features?d={name}")
        expect(page.get_by_role("columnheader", name="Proj.")).to_have_count(columns)
        expect(page.get_by_role("columnheader", name="Bias")).to_have_count(1)
