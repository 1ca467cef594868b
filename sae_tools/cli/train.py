"""`sae-train`: train a job's dictionaries on one pass over the same tokens, then measure them on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, StopSignals, run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None)

EPILOG = "Example: sae-train configs/quickstart.yaml training.tokens=200_000 name=first-try"


@app.command(epilog=EPILOG)
def train(
    config: Annotated[
        Path | None, typer.Argument(help="A job in YAML (see configs/); not needed with --resume.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key.path=value.", metavar="[KEY=VALUE]…")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run where its newest checkpoint left it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory, FLOPs and time; train nothing.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Then build the feature report, as sae-report RUN does.")
    ] = False,
) -> None:
    """Train sparse autoencoders as CONFIG says and leave a run directory behind."""
    from sae_tools.errors import UserError

    if config is None and resume is None:
        raise UserError("sae-train needs a configuration (such as configs/quickstart.yaml) or --resume RUN.")
    if config is not None and resume is not None and "=" in str(config) and not config.exists():
        config, overrides = None, [str(config), *(overrides or [])]  # sae-train --resume RUN key=value
    if resume is not None:
        from sae_tools.runs.directory import RunDirectory

        RunDirectory.open(resume)  # says so if it is no run, before its configuration is looked for
    cfg = _job_config(config or (resume / "config.yaml" if resume else None), overrides or [])

    from sae_tools.memory import keep_freed_memory

    keep_freed_memory()
    if dry_run:
        from rich.console import Console

        from sae_tools.training.estimate import estimate_job

        Console().print(estimate_job(cfg).render())
        return

    from sae_tools.training.run import run_job

    with StopSignals() as stop:
        result = run_job(cfg, resume=resume, should_stop=stop.requested)
    if result.fidelity is None:
        raise typer.Exit(INTERRUPTED)
    if report:
        from sae_tools.cli.report import build
        from sae_tools.config_report import ReportConfig

        run = str(result.run.path)
        settings = ReportConfig(device=cfg.training.device, threads=cfg.training.threads)
        print(f"  report: {build([run], settings, None, f'to go on: sae-report {run}')}")


def _job_config(path: Path | None, overrides: list[str]):
    from sae_tools.config import JobConfig
    from sae_tools.config_loading import load_config

    assert path is not None
    return load_config(JobConfig, path, overrides)


def main() -> None:
    run_command(app, "sae-train")


if __name__ == "__main__":
    main()
