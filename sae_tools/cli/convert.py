"""`sae-convert`: a dictionary from one library's files into another's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from sae_tools.cli.common import run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None)

EPILOG = "Example: sae-convert runs/quickstart/resid_update/checkpoints/1000448 converted --to dictionary-learning"


@app.command(epilog=EPILOG)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder of SAELens (checkpoints of runs are such), dictionary_learning or sparsify, an ae.pt, "
            "saelens:RELEASE/SAE_ID, or hub:OWNER/REPOSITORY/FOLDER.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A new folder, or an empty one.")],
    to: Annotated[str, typer.Option("--to", help="saelens, dictionary-learning or sparsify.")],
) -> None:
    """Read the dictionary SRC, in whichever format it is, and write it as DST.

    Features fire on the same activations, as strongly, and are decoded to the same reconstruction; decoder norms are
    folded into the encoder where that changes nothing. What the other library has no place for is said.
    """
    from sae_tools.dictionaries.formats.read import read_dictionary
    from sae_tools.dictionaries.formats.support import FORMATS, Format, architecture_of
    from sae_tools.dictionaries.formats.write import carry_spaces, check_destination, write_dictionary
    from sae_tools.errors import UserError

    if to not in FORMATS:
        raise UserError(f"--to {to} is unknown; expected {', '.join(FORMATS)}.")
    chosen = cast(Format, to)
    check_destination(destination)
    dictionary, metadata = read_dictionary(source)
    notes = write_dictionary(dictionary, destination, chosen)
    label = architecture_of(dictionary, metadata).label
    sizes = f"{dictionary.d_sae:,} features on activations of {dictionary.d_in:,}"
    print(f"{destination}: {label}, {sizes}, for {FORMATS[chosen]}")
    if metadata.get("coordinates") == "space":
        notes.append("Its weights act on the coordinates of the space it was trained in, not on a site's activations.")
        if chosen == "saelens":
            carry_spaces(source, destination)
    for note in notes:
        print(note)


def main() -> None:
    run_command(app, "sae-convert")


if __name__ == "__main__":
    main()
