"""Python sources: the standard library's held-out files are the same ones everywhere, and no copy is in both parts."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from sae_tools.config import DataConfig
from sae_tools.data.python_sources import PythonCorpus
from sae_tools.data.sources import open_documents


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for an installation."""
    lib, site = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    for i in range(60):
        (lib / f"package{i % 5}").mkdir(parents=True, exist_ok=True)
        (lib / f"package{i % 5}" / f"module{i}.py").write_text(f"# module {i} of the library\n")
        (site / f"installed{i % 5}").mkdir(parents=True, exist_ok=True)
        (site / f"installed{i % 5}" / f"module{i}.py").write_text(f"# module {i} installed\r\n")
    (site / "vendored.py").write_text("# module 7 of the library\n")  # an exact copy
    (site / "__editable___finder.py").write_text("path = '/home/somebody'\n")
    (lib / "__pycache__").mkdir()
    (lib / "__pycache__" / "x.py").write_text("# cache\n")
    (lib / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    (lib / "empty.py").write_text("")
    (lib / "data.txt").write_text("no module")
    paths = {**sysconfig.get_paths(), "stdlib": str(lib), "purelib": str(site), "platlib": str(site)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return lib


def keys(source: str, split: str, heldout: float = 0.2, seed: int = 0) -> list[str]:
    documents = open_documents(DataConfig(source=source, heldout=heldout), split=split, seed=seed)  # pyright: ignore[reportArgumentType]
    return [document.key for document in iter(documents.read, None)]


@pytest.mark.usefixtures("library")
def test_parts_are_disjoint_and_complete():
    for source, n in (("python-stdlib", 60), ("python-installed", 120)):
        train, heldout = keys(source, "train"), keys(source, "heldout")
        assert len(train) + len(heldout) == n == len({*train, *heldout})
        assert 0 < len(heldout) < n / 2


@pytest.mark.usefixtures("library")
def test_the_library_is_cut_alike_in_both_sources():
    in_both = [key for key in keys("python-installed", "heldout") if key.startswith("stdlib/")]
    assert in_both == keys("python-stdlib", "heldout")


def test_the_cut_does_not_depend_on_where_the_library_lies(library: Path, monkeypatch: pytest.MonkeyPatch):
    before = keys("python-installed", "heldout")
    moved = library.rename(library.parent / "elsewhere")
    site = str(moved / "site-packages")
    paths = {**sysconfig.get_paths(), "stdlib": str(moved), "purelib": site, "platlib": site}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    assert keys("python-installed", "heldout") == before


@pytest.mark.usefixtures("library")
def test_every_epoch_has_an_order_of_its_own():
    source = open_documents(DataConfig(source="python-stdlib", heldout=0))
    orders = []
    for epoch in (0, 1, 0):
        source.start(epoch)
        orders.append([document.key for document in iter(source.read, None)])
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.usefixtures("library")
def test_order_is_seeded_for_training_only():
    assert keys("python-stdlib", "train", seed=0) == keys("python-stdlib", "train", seed=0)
    assert keys("python-stdlib", "train", seed=0) != keys("python-stdlib", "train", seed=1)
    assert sorted(keys("python-stdlib", "train", seed=0)) == sorted(keys("python-stdlib", "train", seed=1))
    assert keys("python-stdlib", "heldout", seed=0) == keys("python-stdlib", "heldout", seed=1)


def test_counts_say_what_was_left_out(library: Path):
    corpus = PythonCorpus(installed=True, stdlib=False, heldout=0.2)
    fingerprint = corpus.fingerprint()
    assert (fingerprint["documents"], fingerprint["skipped"], fingerprint["copies"]) == (120, 1, 2)
    assert not any("editable" in shard.key or "pycache" in shard.key for shard in corpus.shards)
    (library / "package0" / "module0.py").write_text("# another version\n")
    assert PythonCorpus(installed=True, stdlib=False, heldout=0.2).digest != corpus.digest


@pytest.mark.usefixtures("library")
def test_newlines_are_one_character():
    documents = open_documents(DataConfig(source="python-installed", heldout=0))
    assert not any("\r" in (document.text or "") for document in iter(documents.read, None))


def test_this_interpreter_has_a_library_worth_reading():
    corpus = PythonCorpus(installed=False, stdlib=True, heldout=0.05)
    heldout = sum(shard.decided == "heldout" for shard in corpus.shards)
    assert len(corpus.shards) > 300 and 0.02 < heldout / len(corpus.shards) < 0.1
    assert corpus.bytes > 5_000_000
