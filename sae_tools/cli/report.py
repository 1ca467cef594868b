"""`sae-report`: the features of runs and SAEs as one page that opens offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, run_command
from sae_tools.cli.paths import FirstPath, More, paths_and_settings, say

if TYPE_CHECKING:
    from sae_tools.config_report import ReportConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None)

UNITS = {
    "reading text": "tokens",
    "activations": "tokens",
    "contexts": "features",
    "logit weights": "features",
    "geometry": "features",
    "effects": "contexts",
}
"""What analysis/features.py counts in its stages."""


@app.command(epilog="Example: sae-report runs/quickstart tokens=50_000 -o features.html")
def report(
    path: FirstPath,
    more: More = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The file; otherwise report.html in the run, or here if it is not one run. Of several runs, or an SAE "
            "that is no run, what was measured stays beside it, in a folder OUTPUT.analysis (without OUTPUT's .html).",
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve it to this machine's browsers until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: a free one.")] = 0,
) -> None:
    """Show the features of runs and SAEs: one HTML file, or a folder where they are many.

    It holds all that it shows, the text that features were measured on among it. What was measured is kept (of a run
    in its analysis/features); the same command again uses it, another tokens= measures again and replaces it. With
    --serve, PATH may also be a report that is there.
    """
    from sae_tools.config_report import ReportConfig
    from sae_tools.errors import UserError

    paths, cfg = paths_and_settings([path, *(more or [])], ReportConfig, "sae-report")
    if port and not serve:
        raise UserError("--port is of use only with --serve.")
    page = existing_report(paths)
    if page is not None and not serve:
        raise UserError(f"{page} is a report already: open it in a browser, or add --serve.")
    if page is None:
        page = build(paths, cfg, output)
        print(f"Report: {page}")
    if serve:
        from sae_tools.report.serve import serve as serve_page

        serve_page(page, port, say=lambda line: print(line, flush=True))


def existing_report(paths: list[str]) -> Path | None:
    """The page, if the one path given is a report already."""
    from sae_tools.report.marker import is_report

    path = Path(paths[0])
    if len(paths) > 1 or not is_report(path):
        return None
    return path / "index.html" if path.is_dir() else path


def build(paths: list[str], cfg: ReportConfig, output: Path | None, to_go_on: str = "the same command goes on") -> Path:
    """The report, with its progress on stderr. to_go_on: what is said of an interrupted one, after "What was measured
    is kept: "."""
    from sae_tools.memory import keep_freed_memory
    from sae_tools.report.build import build_report
    from sae_tools.tracking.stages import StageProgress

    keep_freed_memory()
    try:
        with StageProgress(UNITS) as progress:
            return build_report(paths, cfg, output, progress=progress.update, say=say)
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was measured is kept: {to_go_on}.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def main() -> None:
    run_command(app, "sae-report")


if __name__ == "__main__":
    main()
