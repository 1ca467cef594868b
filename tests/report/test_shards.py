"""A report as a folder: the same data in files that scripts can load, and the same page around them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sae_tools.errors import UserError
from sae_tools.report.columns import decode, unpack
from sae_tools.report.marker import is_report
from sae_tools.report.write import write_report
from tests.report.synthetic import synthetic_contents


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "report"
    page = write_report(synthetic_contents([run], sharded=True, chunk=32), folder)
    assert page == folder / "index.html"
    return folder


def test_every_blob_is_a_script_that_hands_it_over(folder: Path, page: Path, blob):
    names = re.findall(r'data-blob="([^"]+)"', re.sub(r"<script>.*?</script>", "", page.read_text(), flags=re.DOTALL))
    assert {path.name for path in (folder / "data").iterdir()} == {f"{name.replace('/', '-')}.js" for name in names}
    for name in names:
        text = (folder / "data" / f"{name.replace('/', '-')}.js").read_text()
        (call,) = re.findall(r"^saeBlob\((.*)\)\n$", text)
        said, content = json.loads(f"[{call}]")
        assert said == name
        arrays, values = unpack(decode(content))
        expected, in_page = blob(name)
        assert {key: array.tobytes() for key, array in arrays.items()} == {
            key: array.tobytes() for key, array in expected.items()
        }
        if name == "report":
            assert values["meta"].pop("sharded") and not in_page["meta"].pop("sharded")
        assert values == in_page


def test_the_page_may_load_its_data_and_nothing_else(folder: Path):
    text = (folder / "index.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert "strict-dynamic" in policy and "default-src &#39;none&#39;" in policy
    assert "data-blob=" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_a_report_takes_a_reports_place_and_no_other_folders(run: Path, folder: Path, tmp_path: Path):
    contents = synthetic_contents([run], sharded=True, chunk=64)
    own = tmp_path / "mine"
    write_report(contents, own)
    assert is_report(own)
    write_report(contents, own)  # again, over itself
    assert len(list((own / "data").glob("features-mlp_acts-*.js"))) == 2
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("…")
    with pytest.raises(UserError, match="neither empty nor a report"):
        write_report(contents, precious)
    assert (precious / "thesis.tex").read_text() == "…"
    (own / "thesis.tex").write_text("…")  # a page that somebody put into a folder of their own
    with pytest.raises(UserError, match="neither empty nor a report"):
        write_report(contents, own)
    (own / "thesis.tex").rename(own / "data" / "thesis.tex")
    with pytest.raises(UserError, match="neither empty nor a report"):
        write_report(contents, own)
    assert (own / "data" / "thesis.tex").read_text() == "…"
    (tmp_path / "file").write_text("…")
    with pytest.raises(UserError, match="neither empty nor a report"):
        write_report(contents, tmp_path / "file")
