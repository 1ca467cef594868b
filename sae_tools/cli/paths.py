"""What `sae-report` and `sae-eval` are told: runs and SAEs by their paths, and settings among them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from sae_tools.config import Section

S = TypeVar("S", bound="Section")
FirstPath = Annotated[str, typer.Argument(metavar="PATH", help="A run, or a dictionary in any format that is read.")]
More = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATH|KEY=VALUE", help="More of them; settings as key.path=value."),
]


def paths_and_settings(arguments: list[str], kind: type[S], command: str) -> tuple[list[str], S]:
    """(paths, settings of `kind`): what has no `=` in it is a path, and what is there under that very name."""
    from sae_tools.config_loading import parse_config
    from sae_tools.errors import UserError

    paths = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    overrides = [argument for argument in arguments if argument not in paths]
    _refuse_no_settings(paths, overrides, kind)
    if not paths:
        raise UserError(f"{command} needs a run, such as runs/quickstart, or an SAE.")
    return paths, parse_config(kind, "", command, overrides)


def _refuse_no_settings(paths: list[str], overrides: list[str], kind: type[Section]) -> None:
    """UserError for what was meant as a setting of `kind` and is not written so, as in `tokens 5` and `tokens =5`."""
    from sae_tools.config_loading import settings
    from sae_tools.errors import UserError

    names = {*kind.model_fields, *(key for key, _, _ in settings(kind))}
    for path in paths:
        if path in names and not Path(path).exists():
            raise UserError(f"{path!r} is a setting, and settings are written {path}=VALUE, without a space.")
    for override in overrides:
        if not override.partition("=")[0].strip():
            raise UserError(f"{override!r} names no setting; expected key.path=value, as in tokens=50_000.")


def say(line: str) -> None:
    """On stderr, above the bar of the progress if there is one."""
    print(line, file=sys.stderr, flush=True)
