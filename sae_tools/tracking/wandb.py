"""Metrics to Weights & Biases, only when asked; `offline` writes files and needs neither network nor account."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Literal

from sae_tools.errors import UserError
from sae_tools.runs import atomic


class WandbTracker:
    """One wandb run per run directory. Its id is kept in `state/wandb.json`, so that --resume goes on with the same.

    Lines are logged under `tokens` as the x axis: a resumed run logs those past its checkpoint again, with the same
    values. A failure to start is a UserError; afterwards wandb retries by itself, and training does not wait for it.
    """

    def __init__(self, mode: Literal["offline", "online"], project: str, run: Path, config: dict[str, Any]):
        import wandb  # slow to import, and off for most

        id_file = run / "state" / "wandb.json"
        id_file.parent.mkdir(exist_ok=True)
        resume = id_file.exists()
        if not resume:
            atomic.write_json(id_file, {"id": secrets.token_hex(4)})
        try:
            self._run = wandb.init(
                mode=mode,
                project=project,
                name=run.name,
                id=atomic.read_json(id_file)["id"],
                resume="allow" if resume and mode == "online" else None,
                dir=str(run),
                config=config,
                settings=wandb.Settings(silent=True, console="off", init_timeout=60),
            )
        except Exception as error:  # wandb's own, of many kinds: no login, no network, a proxy, a full disk
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"tracking.wandb is '{mode}', but wandb does not start ({reason}); log in with `wandb login`, or use "
                "tracking.wandb=offline or off."
            ) from None
        self._run.define_metric("*", step_metric="tokens")

    def update(self, tokens: int) -> None:
        """Nothing: wandb is told lines of metrics only."""

    def record(self, record: dict[str, Any]) -> None:
        """Log a line of metrics: {"dictionaries": {"up": {"fvu": x}}} becomes `up/fvu`."""
        self._run.log(flat(record))

    def __enter__(self) -> WandbTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics with one level of keys; the dictionaries' own come first in their names."""
    result: dict[str, Any] = {}
    for key, value in record.items():
        if key == "dictionaries":
            result |= {f"{name}/{inner}": x for name, values in value.items() for inner, x in values.items()}
        elif isinstance(value, dict):
            result |= {f"{key}/{inner}": x for inner, x in value.items()}
        else:
            result[key] = value
    return result
