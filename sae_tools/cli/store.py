"""`sae-store`: harvest a job's rows once and keep them on disk, for jobs that share them (`store: FOLDER`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_tools.cli.common import INTERRUPTED, StopSignals, run_command

app = typer.Typer(add_completion=False, rich_markup_mode=None)

EPILOG = "Example: sae-store configs/quickstart.yaml --output stores/quickstart --tokens 200000"


@app.command(epilog=EPILOG)
def store(
    config: Annotated[
        Path | None, typer.Argument(help="A job in YAML (see configs/); not needed to --verify a complete store.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key.path=value.", metavar="[KEY=VALUE]…")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The store's folder; default: the configuration's `store`.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Rows to store; default: as many as the job trains on.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the model's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print sizes and time; write nothing.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then compare every byte of the store with its checksums.")
    ] = False,
) -> None:
    """Store the rows that CONFIG trains on: its model, data, rows, buffer and seed, and the sites of its dictionaries.

    The same command again goes on with a store that is not complete.
    """
    from sae_tools.errors import UserError

    if config is None and not (verify and output):
        raise UserError("sae-store needs a configuration (such as configs/quickstart.yaml), or --output and --verify.")
    if config is not None:
        from sae_tools.config import JobConfig
        from sae_tools.config_loading import load_config

        cfg = load_config(JobConfig, config, overrides or [])
        if output is None and cfg.store is None:
            raise UserError("sae-store needs --output FOLDER, or a configuration whose `store` says where.")
        output = output or Path(cfg.store or "")

        from sae_tools.memory import keep_freed_memory
        from sae_tools.training.storing import write_store

        keep_freed_memory()
        with StopSignals() as stop:
            written = write_store(cfg, output, rows=tokens, dtype=dtype, dry_run=dry_run, should_stop=stop.requested)
        if dry_run:
            return
        if written is None:
            raise typer.Exit(INTERRUPTED)
    if verify and output is not None:
        from sae_tools.activations.store import Store
        from sae_tools.tracking.progress import TokenProgress

        found = Store.open(output)
        with TokenProgress(found.rows) as progress:
            found.verify(progress.update)
        print(f"{output}: {found.rows:,} rows, every checksum as it was written")


def main() -> None:
    run_command(app, "sae-store")


if __name__ == "__main__":
    main()
