"""`sae-lm`: train small language models and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, StopSignals, run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

OVERRIDES_HELP = "Settings as key.path=value."


@app.callback()
def lm() -> None:
    """Train small language models and measure them."""


@app.command(epilog="Example: sae-lm train configs/lm-bundled.yaml training.tokens=200_000 name=first-try")
def train(
    config: Annotated[Path | None, typer.Argument(help="A language model in YAML (configs/lm-*.yaml).")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP, metavar="[KEY=VALUE]…")] = None,
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
    from sae_tools.tracking.metrics import read_metrics

    keep_freed_memory()
    with StopSignals() as stop:
        run = train_lm(cfg, resume=resume, should_stop=stop.requested)
    if not run.finished:
        print(f"Stopped after {run.tokens:,} tokens. To go on: sae-lm train --resume {run.folder}")
        raise typer.Exit(INTERRUPTED)
    losses = [record["heldout_loss"] for record in read_metrics(run.directory.metrics) if "heldout_loss" in record]
    print(f"Held-out loss {losses[-1]:.4f} after {run.tokens:,} tokens; the model is {run.checkpoint()}")


@app.command(epilog="Example: sae-lm evaluate bundled data.source=python-stdlib tokens=50_000 ngrams=false")
def evaluate(
    model: Annotated[str, typer.Argument(help="`bundled`, a Hugging Face folder, or a hub name.")],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP, metavar="[KEY=VALUE]…")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Held-out loss of MODEL, beside n-gram models counted on the training part of the same text."""
    from sae_tools.config import LMEvaluationConfig
    from sae_tools.config_loading import parse_config

    cfg = parse_config(LMEvaluationConfig, "", "sae-lm evaluate", [f"model.name={model}", *(overrides or [])])

    from sae_tools.lm.evaluate import describe, evaluate_lm
    from sae_tools.memory import keep_freed_memory

    keep_freed_memory()
    result = evaluate_lm(cfg)
    if json_:
        import json

        print(json.dumps(result))
    else:
        print(describe(result))


def main() -> None:
    run_command(app, "sae-lm")


if __name__ == "__main__":
    main()
