"""200 broken folders of each format: each a sentence, none loads, crashes, hangs or runs what it holds."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.dictionaries.formats.support import FORMATS
from sae_tools.errors import UserError
from tests.dictionaries.formats import mutations_of_releases as of_releases
from tests.dictionaries.formats.mutations import Mutation, copied, good_folders, mutations


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", FORMATS)
def test_each_is_one_sentence(where: str, tmp_path: Path) -> None:
    folders = good_folders(tmp_path / "good", where)
    for folder in folders:
        load_dictionary(folder)

    def copies(number: int, rng: random.Random) -> tuple[Path, Path]:
        folder = copied(rng.choice(folders), tmp_path / str(number))
        return folder, folder

    each_is_one_sentence(mutations(where), copies, tmp_path, len(where))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", of_releases.LAYOUTS)
def test_each_of_a_release_is_one_sentence(where: str, tmp_path: Path) -> None:
    """Given as a folder or as a file, in folders of the names that the hub has."""
    paths = of_releases.good(tmp_path / "good", where)
    makers = {path: [mutate for _, mutate in of_releases.mutations(where, path)] for path in paths}
    for path in paths:
        load_dictionary(path)

    def copies(number: int, rng: random.Random) -> tuple[Path, Path]:
        good = paths[number % len(paths)]
        relative = good.relative_to(tmp_path / "good")
        shutil.copytree(tmp_path / "good" / relative.parts[0], tmp_path / str(number) / relative.parts[0])
        path = tmp_path / str(number) / relative
        return (path if path.is_dir() else path.parent), path

    def mutation(number: int) -> Mutation:
        return makers[paths[number % len(paths)]][number // len(paths) if len(paths) > 1 else number]

    each_is_one_sentence(((number, mutation(number)) for number in range(200)), copies, tmp_path, len(where))


def each_is_one_sentence(
    broken: Iterable[tuple[int, Mutation]],
    copies: Callable[[int, random.Random], tuple[Path, Path]],
    tmp_path: Path,
    salt: int,
) -> None:
    """copies: gives a good copy's folder and what of it is read."""
    seen: list[str] = []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, mutate in broken:
        rng = random.Random(1000 * number + salt)
        folder, path = copies(number, rng)
        trace = tmp_path / f"trace-{number}"
        how = f"{number} {folder.name} {mutate.__name__}: {mutate(folder, rng, trace)}"
        try:
            with at_most(20):
                load_dictionary(path)
        except UserError as error:
            sentence = str(error)
            assert len(sentence.splitlines()) == 1 and sentence.endswith("."), (how, sentence)
            assert sentence.isprintable() and len(sentence) < 600 + len(str(tmp_path)), (how, sentence)
            seen.append(sentence)
        else:
            pytest.fail(f"it loads: {how}")
        assert not trace.exists(), how
    assert len(seen) == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000  # kilobytes


def test_the_trace_is_left_where_a_pickle_is_run(tmp_path: Path) -> None:
    """Else the check above would prove nothing."""
    import torch

    from tests.dictionaries.formats.mutations import Code

    torch.save({"a": Code(tmp_path / "trace")}, tmp_path / "ae.pt")
    with pytest.raises(UserError, match="its pickle names code"), warnings.catch_warnings():
        load_dictionary(tmp_path)
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "ae.pt", weights_only=False)
    assert (tmp_path / "trace").exists()
