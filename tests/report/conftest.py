"""A synthetic run and its report, made once for the tests that only read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_tools.report.columns import decode, unpack
from sae_tools.report.contents import Contents
from sae_tools.report.write import write_report
from tests.report.synthetic import synthetic_contents, synthetic_run

BLOB = re.compile(r'<script type="application/octet-stream" data-blob="([^"]+)">([A-Za-z0-9+/=]*)</script>')


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Three dictionaries of 70 features on 24 contexts of 64 tokens, 12 windows of history."""
    folder = tmp_path_factory.mktemp("report")
    return synthetic_run(folder, features=70, contexts=24, length=64, d_vocab=300, windows=12)


@pytest.fixture(scope="session")
def contents(run: Path) -> Contents:
    return synthetic_contents([run], chunk=32)


@pytest.fixture(scope="session")
def page(contents: Contents, tmp_path_factory) -> Path:
    return write_report(contents, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def blob(page: Path) -> Callable:
    """blob(name) → (arrays, JSON), taken from the page as a browser would."""
    found = dict(BLOB.findall(page.read_text()))
    return lambda name: unpack(decode(found[name]))
