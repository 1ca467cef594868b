"""`sae-eval`: how faithful dictionaries are, on held-out text, with controls and probes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, run_command
from sae_tools.cli.paths import FirstPath, More, paths_and_settings, say

app = typer.Typer(add_completion=False, rich_markup_mode=None)

UNITS = {"reading text": "tokens", "measuring": "tokens", "controls": "tokens", "probing": "probes"}
"""What analysis/evaluation.py counts in its stages."""


@app.command(epilog="Example: sae-eval runs/quickstart tokens=16_384 probing.enabled=false")
def evaluate(
    path: FirstPath,
    more: More = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The file; otherwise analysis/evaluation.json in the run, or evaluation.json here if not one run.",
        ),
    ] = None,
) -> None:
    """Measure dictionaries on held-out text: reconstruction, what splicing does to the model, controls, probes.

    Prints tables, and writes all figures with their definitions and the tokens that they stand on. Settings, such as
    tokens=, model.name=, data.source=, controls.enabled= and probing.k=[1,16], are in sae_tools/config_eval.py.
    """
    from sae_tools.config_eval import EvalConfig

    paths, cfg = paths_and_settings([path, *(more or [])], EvalConfig, "sae-eval")

    from rich.console import Console

    from sae_tools.analysis.evaluation import evaluate_dictionaries
    from sae_tools.analysis.evaluation_table import evaluation_tables, legend
    from sae_tools.memory import keep_freed_memory
    from sae_tools.tracking.stages import StageProgress

    keep_freed_memory()
    try:
        with StageProgress(UNITS) as progress:
            found, target = evaluate_dictionaries(paths, cfg, output, progress=progress.update, say=say)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was written.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    console = Console(soft_wrap=True)
    for table in evaluation_tables(found):
        console.print(table)
    console.print(legend(found), highlight=False, markup=False)
    print(f"Evaluation: {target}")


def main() -> None:
    run_command(app, "sae-eval")


if __name__ == "__main__":
    main()
