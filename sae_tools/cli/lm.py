"""`sae-lm`: train small language models and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, StopSignals, run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def lm() -> None:
    """Train small language models and measure them."""


@app.command(epilog="Example: sae-lm train configs/lm-bundled.yaml training.tokens=200_000 name=first-try")
def train(
    config: Annotated[Path | None, typer.Argument(help="A language model in YAML (configs/lm-*.yaml).")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key.path=value.", metavar="[KEY=VALUE]…")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run from its last saved state.")] = None,
) -> None:
    """Train a language model from scratch; its checkpoints are Hugging Face folders."""
    from sae_tools.config import LMConfig
    from sae_tools.config_loading import load_config
    from sae_tools.errors import UserError

    if config is not None and resume is not None and "=" in str(config) and not config.exists():
        config, overrides = None, [str(config), *(overrides or [])]  # sae-lm train --resume RUN key=value
    if config is None and resume is None:
        raise UserError("sae-lm train needs a configuration (such as configs/lm-bundled.yaml) or --resume RUN.")
    path = config or (resume / "config.yaml" if resume else None)
    assert path is not None
    cfg = load_config(LMConfig, path, overrides or [])

    from sae_tools.lm.train import train_lm
    from sae_tools.memory import keep_freed_memory

    keep_freed_memory()
    with StopSignals() as stop:
        run, finished = train_lm(cfg, resume, stop.requested)
    if not finished:
        print(f"Stopped after step {run.step} of {run.steps}; to continue: sae-lm train --resume {run.folder}")
        raise typer.Exit(INTERRUPTED)
    print(f"{run.folder}: {run.tokens:,} tokens in {run.steps:,} steps; checkpoints in {run.folder / 'checkpoints'}")


def main() -> None:
    run_command(app, "sae-lm")


if __name__ == "__main__":
    main()
