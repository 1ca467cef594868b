"""200 broken folders of each format: each a sentence, none loads, crashes, hangs or runs what it holds."""

from __future__ import annotations

import random
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.dictionaries.formats.support import FORMATS
from sae_tools.errors import UserError
from tests.dictionaries.formats.mutations import copied, good_folders, mutations


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
    seen: list[str] = []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, mutate in mutations(where):
        rng = random.Random(1000 * number + len(where))
        folder = copied(rng.choice(folders), tmp_path / str(number))
        trace = tmp_path / f"trace-{number}"
        how = f"{number} {folder.name} {mutate.__name__}: {mutate(folder, rng, trace)}"
        try:
            with at_most(20):
                load_dictionary(folder)
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
