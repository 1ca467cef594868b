"""Do dictionaries survive the libraries whose formats we write, and theirs our readers?

    python scripts/interop/round_trips.py [--save] [--only saelens,dictionary-learning,sparsify]

The first run makes .venv-peers (minutes), where it then runs itself. For every architecture and format of
`formats/support.py`, on 1,000 rows of the bundled model that nothing was trained on:

    ours → theirs   a dictionary of ours, written by `write_dictionary`, loaded by the library's own class
    theirs → ours   what that class saves of it, read by `read_dictionary`
    fresh           what the library has trained itself and written with its own code, read by us

Each time: the same active features on every row (rows at a tie are counted), and activations and reconstructions to a
relative 1e-5 of every row. Exit status 1 where something fails. --save writes reports/interop.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from measure import environment  # noqa: E402

if __name__ == "__main__":
    environment.enter()

import torch
from measure.machine import describe
from torch import Tensor
from trips import report
from trips.compare import Comparison, compare, distances
from trips.peer import Peer
from trips.subjects import Bench, bench, metadata_of, sites_of, trained, trivial, unsubtracted

from sae_tools.dictionaries.base import Dictionary
from sae_tools.dictionaries.formats.read import read_dictionary
from sae_tools.dictionaries.formats.support import FORMATS, MATRIX, Architecture, Format, architecture_of
from sae_tools.dictionaries.formats.units import FREE
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError

LIBRARIES: dict[Format, str] = {
    "saelens": "trips.with_saelens",
    "dictionary-learning": "trips.with_dictionary_learning",
    "sparsify": "trips.with_sparsify",
}
OURS, THEIRS, FRESH = "ours → theirs", "theirs → ours", "fresh → ours"
Result = dict[str, Any]


@torch.no_grad()
def against(ours: Dictionary, peer: Peer, x: Tensor) -> Comparison:
    """Activations are compared as what they add, in units of length: of both sides times the decoder's norms."""
    f, theirs = ours.encode(x) * ours.decoder_norms, peer.encode(x) * peer.norms
    return compare(theirs, peer.forward(x), f, ours(x), distances(ours, x))


def checked(label: str, where: Format, direction: str, name: str, make: Any) -> Result:
    """One line of the table; what a library or a reader raises is a failure that says what it was."""
    found: Result = {"architecture": label, "format": where, "direction": direction, "what": name}
    try:
        return found | make()
    except Exception as error:  # whatever it is, the other cells are still of interest
        return found | {"ok": False, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def unit_holds(metadata: dict[str, Any], read: Dictionary) -> bool:
    """Where a file says that decoder rows have norm 1, they do."""
    said = "norm 1" in metadata["activation_unit"]
    return not said or bool(((read.decoder_norms - 1).abs() < 1e-4).all())


def judged(read: Dictionary, metadata: dict[str, Any], peer: Peer, architecture: Architecture, x: Tensor) -> Result:
    """What we have read beside the library's own dictionary; also whether the unit that it says is true."""
    found = against(read, peer, x).as_json()
    same = architecture_of(read, metadata).skip == architecture.skip and unit_holds(metadata, read)
    return {"class": peer.name, **found, "ok": found["ok"] and same, "unit": metadata["activation_unit"]}


def there_and_back(
    ours: Dictionary, architecture: Architecture, where: Format, name: str, x: Tensor, folder: Path, said: dict
) -> Iterator[Result]:
    """Both directions of one dictionary, as two results."""
    library, held = import_module(LIBRARIES[where]), {}
    folder.mkdir()

    def there() -> Result:
        write_dictionary(ours, folder / "ours", where, said)
        held["peer"] = load_quietly(library, folder / "ours")
        return {"class": held["peer"].name, **against(ours, held["peer"], x).as_json()}

    def back() -> Result:
        held["peer"].save(folder / "theirs")
        return judged(*read_dictionary(folder / "theirs"), held["peer"], architecture, x)

    yield checked(architecture.label, where, OURS, name, there)
    if "peer" in held:
        yield checked(architecture.label, where, THEIRS, name, back)


def load_quietly(library: Any, path: Path) -> Peer:
    with quiet():
        return library.load(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries print."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def of_ours(rows: Bench, only: list[Format], folder: Path) -> Iterator[Result]:
    """Every cell of the matrix; dictionaries are trained once for the formats that share them."""
    made: dict[tuple[Architecture, str], Dictionary] = {}
    for number, (architecture, where) in enumerate(MATRIX):
        if where not in only:
            continue
        reads, writes = sites_of(architecture, where)
        if (architecture, reads) not in made:
            x, y = rows.trained_on(reads), rows.trained_on(writes)
            made[architecture, reads] = trained(architecture, x, y if architecture.transcoder else None)
        ours, x = made[architecture, reads], rows.compared(reads)
        if left := trivial(ours):
            raise SystemExit(f"The {architecture.label} dictionary is not trained enough: {', '.join(left)}.")
        metadata = metadata_of(reads, writes)
        variants = {"as it is": (ours, metadata)}
        if architecture.kind in ("relu", "jumprelu", "gated"):  # else norms are folded when these are written
            variants["norms kept"] = (ours, {**metadata, "activation_unit": FREE})
        if not architecture.transcoder:
            variants["b_dec not subtracted"] = (unsubtracted(ours), metadata)
        for name, (variant, said) in variants.items():
            into = folder / f"{number} {name}"
            yield from there_and_back(variant, architecture, where, name, x, into, said)


def of_theirs(rows: Bench, where: Format, folder: Path) -> Iterator[Result]:
    """What the library trains and writes itself."""
    library = import_module(LIBRARIES[where])
    found = library.fresh(rows, folder)
    while True:
        try:
            with quiet():
                one = next(found, None)
        except Exception as error:
            yield checked("(training)", where, FRESH, "its own trainer", lambda error=error: throw(error))
            return
        if one is None:
            return

        def read(one: Any = one) -> Result:
            dictionary, metadata = read_dictionary(one.path)
            if left := trivial(dictionary):
                raise AssertionError(f"it is not trained enough: {', '.join(left)}")
            if {key: metadata.get(key) for key in one.says} != one.says:
                raise AssertionError(f"its metadata should say {one.says}, and are {metadata}")
            return judged(dictionary, metadata, one.peer, one.architecture, rows.compared(one.site))

        yield checked(one.architecture.label, where, FRESH, one.name, read)


def throw(error: Exception) -> Result:
    raise error


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write reports/interop")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FORMATS), help="these formats")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(FORMATS):
        parser.error(f"no such format: {', '.join(sorted(unknown))}; there are {', '.join(FORMATS)}")
    return args


def main() -> int:
    args = arguments()
    torch.manual_seed(0)
    rows = bench()
    found: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for result in of_ours(rows, args.only, folder):
            print(report.line(result), flush=True)
            found.append(result)
        for where in args.only:
            (folder / where).mkdir()
            for result in of_theirs(rows, where, folder / where):
                print(report.line(result), flush=True)
                found.append(result)
    failed = [result for result in found if not result["ok"]]
    print(f"{len(found) - len(failed)} of {len(found)} agree")
    if args.save:
        report.save(found, describe())
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"Error: {error}")
