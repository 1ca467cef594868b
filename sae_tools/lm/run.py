"""A language model's training run: assembled afresh, or continued from the state that was saved last.

runs/<name>/
  config.yaml            everything resolved, with versions and the data's fingerprint
  tokenizer/             what was learned from the training text
  metrics.jsonl          one line per logged step; a resume drops lines past its state
  checkpoints/<tokens>/  a Hugging Face folder each, on a log schedule
  trainer.safetensors    what --resume continues from
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sae_tools.config import DataConfig, LMConfig
from sae_tools.config_loading import first_difference, load_config
from sae_tools.data.ahead import reads_ahead
from sae_tools.data.stream import ContextStream
from sae_tools.device import pick_device
from sae_tools.errors import UserError
from sae_tools.lm.model import build_model
from sae_tools.lm.optimisers import build_optimiser
from sae_tools.lm.schedule import total_steps
from sae_tools.lm.state import load_state, save_state
from sae_tools.lm.tokenizer import get_tokenizer
from sae_tools.runs.atomic import creating_folder, remove_folder
from sae_tools.runs.directory import RunDirectory

MAY_CHANGE = (
    "name",
    "runs_dir",
    "provenance",
    "training.tokens",
    "training.log_every",
    "training.heldout_every",
    "training.save_every",
    "training.device",
    "training.threads",
)
"""What --resume may set anew. With other tokens the learning rate follows the new schedule from there on."""


@dataclass
class LMRun:
    """A run at some step."""

    cfg: LMConfig
    directory: RunDirectory
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    optimiser: torch.optim.Optimizer
    stream: ContextStream
    heldout: Int[Tensor, "contexts length_plus_1"]
    device: torch.device
    step: int = 0

    @property
    def folder(self) -> Path:
        return self.directory.path

    @property
    def steps(self) -> int:
        return total_steps(self.cfg.training, self.cfg.architecture.context_length)

    @property
    def tokens_per_step(self) -> int:
        return self.cfg.training.batch_size * self.cfg.architecture.context_length

    @property
    def tokens(self) -> int:
        """Tokens predicted so far."""
        return self.step * self.tokens_per_step

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def save(self) -> None:
        """Writes what --resume continues from."""
        position = {"step": self.step, "stream": self.stream.state_dict(), "data": self.stream.fingerprint()}
        save_state(self.folder, self.model, self.optimiser, position)

    def checkpoint(self) -> Path:
        """`checkpoints/<tokens>`: weights in float32, configuration and tokenizer; whole or not at all."""
        folder = self.folder / "checkpoints" / str(self.tokens)
        if not folder.is_dir():
            with creating_folder(folder) as beside:
                self.model.save_pretrained(beside)
                self.tokenizer.save_pretrained(beside)
        return folder


def start_run(cfg: LMConfig) -> LMRun:
    """A new run, before its first step; from then on it can be resumed.

    Raises UserError for data that cannot be read and for what does not fit together, before the folder is made.
    """
    device = pick_device(cfg.training.device, "training.device")
    tokenizer = get_tokenizer(cfg.tokenizer, cfg.data, cfg.seed)
    parts = _assemble(cfg, tokenizer, device)
    cfg = cfg.model_copy(update={"provenance": provenance(parts["stream"])})
    directory = RunDirectory.create(Path(cfg.runs_dir), cfg.name)
    directory.write_config(cfg)
    tokenizer.save_pretrained(directory.path / "tokenizer")
    run = LMRun(cfg=cfg, directory=directory, tokenizer=tokenizer, device=device, **parts)
    run.save()
    return run


def resume_run(folder: Path, cfg: LMConfig) -> LMRun:
    """The run in `folder` where its last saved state left it; checkpoints past that are removed.

    `cfg` must equal the run's own but for MAY_CHANGE. Raises UserError where it does not, where the folder is no run
    or its state is damaged, where the data has changed, or where another process is training this run.
    """
    directory = RunDirectory.open(folder)
    own = load_config(LMConfig, directory.config)
    if difference := first_difference(cfg, own, MAY_CHANGE):
        raise UserError(f"{folder} cannot be resumed with this configuration: {difference}.")
    device = pick_device(cfg.training.device, "training.device")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory.path / "tokenizer", local_files_only=True)
    except Exception as error:  # whatever the tokenizers library makes of a broken file
        raise UserError(f"{folder} cannot be resumed: its tokenizer cannot be read.") from error
    parts = _assemble(cfg, tokenizer, device)
    position = load_state(folder, parts["model"], parts["optimiser"])
    if position["data"] != (found := parts["stream"].fingerprint()):
        keys = [key for key in found if position["data"].get(key) != found[key]]
        raise UserError(
            f"{folder} cannot be resumed: its text is not the one that it was started with "
            f"(different: {', '.join(keys)})."
        )
    parts["stream"].load_state_dict(position["stream"])
    cfg = cfg.model_copy(update={"provenance": provenance(parts["stream"])})
    run = LMRun(cfg=cfg, directory=directory, tokenizer=tokenizer, device=device, **parts, step=position["step"])
    directory.drop_after(run.tokens)
    for checkpoint in (folder / "checkpoints").glob("*"):
        if checkpoint.name.isdecimal() and int(checkpoint.name) > run.tokens:
            remove_folder(checkpoint)
    directory.write_config(cfg)
    return run


def _assemble(cfg: LMConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> dict[str, Any]:
    """Model, optimiser, stream and held-out contexts at their beginnings."""
    # One token more than the model reads: the last is only predicted, so that every position is trained.
    data = cfg.data.model_copy(update={"context_length": cfg.architecture.context_length + 1})
    vocabulary = len(tokenizer)
    stream = ContextStream(
        data,
        tokenizer,
        split="train",
        seed=cfg.seed,
        batch=cfg.training.batch_size,
        vocabulary=vocabulary,
        ahead=reads_ahead(device),
    )
    model = build_model(
        cfg.architecture,
        vocabulary=vocabulary,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=cfg.seed,
    )
    model.to(device)  # pyright: ignore[reportArgumentType] (transformers wraps the method)
    return {
        "model": model,
        "optimiser": build_optimiser(model, cfg.training),
        "stream": stream,
        "heldout": heldout_contexts(data, tokenizer, cfg.training.heldout_tokens),
    }


def heldout_contexts(data: DataConfig, tokenizer: Any, tokens: int) -> Int[Tensor, "contexts length_plus_1"]:
    """The first held-out contexts, about `tokens` tokens."""
    return next(ContextStream(data, tokenizer, split="heldout", batch=math.ceil(tokens / data.context_length))).tokens


def provenance(stream: ContextStream) -> dict[str, Any]:
    """What a run was made from and with."""
    packages = ("sae_tools", "torch", "transformers", "tokenizers", "datasets", "numpy")
    versions = {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}
    return {"data": stream.fingerprint(), "versions": versions}
