"""`sae-report`: the features of runs and SAEs as one page that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: sae-report runs/quickstart tokens=50_000 -o features.html")
def report(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH… [KEY=VALUE]…",
            help="Runs, or folders of SAEs in SAELens's format; then settings as key.path=value.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file; otherwise report.html in the run, or here if it is not one run."
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then serve it to this machine's browsers until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: a free one.")] = 0,
) -> None:
    """Show the features of runs and SAEs: one HTML file, or a folder where they are many.

    With --serve, PATH may also be a report that is there.
    """
    from sae_tools.config_loading import parse_config
    from sae_tools.config_report import ReportConfig
    from sae_tools.errors import UserError

    paths = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    overrides = [argument for argument in arguments if argument not in paths]
    if not paths:
        raise UserError("sae-report needs a run, such as runs/quickstart, or the folder of an SAE.")
    if port and not serve:
        raise UserError("--port is of use only with --serve.")
    cfg = parse_config(ReportConfig, "", "sae-report", overrides)
    page = existing_report(paths) if serve else None
    if page is None:
        page = build(paths, cfg, output)
        print(f"Report: {page}")
    if serve:
        from sae_tools.report.serve import serve as serve_page

        serve_page(page, port, say=lambda line: print(line, flush=True))


def existing_report(paths: list[str]) -> Path | None:
    """The page, if the one path given is a report already."""
    from sae_tools.report.page import is_report

    path = Path(paths[0])
    if len(paths) > 1 or not is_report(path):
        return None
    return path / "index.html" if path.is_dir() else path


def build(paths: list[str], cfg, output: Path | None) -> Path:
    """The report with its progress on stderr."""
    import sys

    from sae_tools.memory import keep_freed_memory
    from sae_tools.report.build import build_report
    from sae_tools.tracking.stages import StageProgress

    keep_freed_memory()
    try:
        with StageProgress() as progress:
            return build_report([Path(path) for path in paths], cfg, output, progress=progress.update)
    except KeyboardInterrupt:
        print("\nInterrupted. What was measured is kept: the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def main() -> None:
    run_command(app, "sae-report")


if __name__ == "__main__":
    main()
