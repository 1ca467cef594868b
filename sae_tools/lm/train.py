"""`sae-lm train`: a language model from scratch, from text to checkpoints that are Hugging Face folders.

runs/<name>/
  config.yaml          everything resolved, with versions and the data's fingerprint
  tokenizer/           what was learned from the training text
  metrics.jsonl        one line per logged step; a resume drops lines past its state
  checkpoints/<tokens>/  a Hugging Face folder each, on a log schedule
  trainer.safetensors  what --resume continues from
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sae_tools.config import DataConfig, LMConfig
from sae_tools.config_loading import dump_config, first_difference, load_config
from sae_tools.data.stream import ContextStream
from sae_tools.errors import UserError
from sae_tools.lm.loss import mean_loss, next_token_loss
from sae_tools.lm.model import build_model
from sae_tools.lm.optimisers import build_optimiser
from sae_tools.lm.schedule import is_checkpoint_step, learning_rate_factor, total_steps
from sae_tools.lm.state import load_state, save_state
from sae_tools.lm.tokenizer import get_tokenizer

MAY_CHANGE = (
    "name",
    "runs_dir",
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
    """A training run at some step."""

    cfg: LMConfig
    folder: Path
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel
    optimiser: torch.optim.Optimizer
    stream: ContextStream
    heldout: Int[Tensor, "contexts length_plus_1"]
    device: torch.device
    step: int = 0

    @property
    def steps(self) -> int:
        return total_steps(self.cfg.training, self.cfg.architecture.context_length)

    @property
    def tokens(self) -> int:
        """Tokens predicted so far."""
        return self.step * self.cfg.training.batch_size * self.cfg.architecture.context_length


def train_lm(
    cfg: LMConfig, resume: Path | None = None, should_stop: Callable[[], bool] = lambda: False
) -> tuple[LMRun, bool]:
    """Trains the model that `cfg` describes, or continues the run in `resume`; returns it and whether it is finished.

    `should_stop` is asked after every step: when it says True, the state is saved and the run ends unfinished.
    Resuming continues bit for bit on a CPU with as many threads. Raises UserError for what is wrong with the
    configuration, the data or the folder, and where the loss is no longer finite.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it warns of padding that is BOS here
    if resume is not None:
        own = load_config(LMConfig, resume / "config.yaml")
        if difference := first_difference(cfg, own, MAY_CHANGE):
            raise UserError(f"{resume}: cannot be resumed with this configuration: {difference}.")
    if cfg.training.threads:
        torch.set_num_threads(cfg.training.threads)
    run = open_run(cfg, resume)
    if resume is None:
        save_state(run.folder, run.model, run.optimiser, position(run))
    metrics = Metrics(run)
    while run.step < run.steps:
        if is_checkpoint_step(run.step, run.steps, cfg.training.checkpoint_first_step):
            save_checkpoint(run)
        loss, norm = train_step(run)
        metrics.add(loss, norm)
        if run.step % cfg.training.log_every == 0 or run.step == run.steps:
            metrics.log()
        stop = should_stop()
        if stop or run.step % cfg.training.save_every == 0 or run.step == run.steps:
            metrics.check_finite()
            save_state(run.folder, run.model, run.optimiser, position(run))
        if stop and run.step < run.steps:
            return run, False
    save_checkpoint(run)
    return run, True


def train_step(run: LMRun) -> tuple[Tensor, Tensor]:
    """One step; returns the loss before it and the gradient's norm before clipping, on the device."""
    cfg = run.cfg.training
    tokens = next(run.stream).tokens.to(run.device)
    factor = learning_rate_factor(run.step, run.steps, cfg)
    for group in run.optimiser.param_groups:
        group["lr"] = cfg.lr * factor * group.get("lr_scale", 1.0)
    loss = next_token_loss(run.model, tokens, cfg.autocast)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), cfg.clip_norm)
    run.optimiser.step()
    run.optimiser.zero_grad()
    run.step += 1
    return loss.detach(), norm


def open_run(cfg: LMConfig, resume: Path | None) -> LMRun:
    """A new run in a folder of its own, or the run in `resume` at the state that was saved."""
    if resume is None:
        tokenizer = get_tokenizer(cfg.tokenizer, cfg.data, cfg.seed)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(resume / "tokenizer")
        except (OSError, ValueError) as error:
            raise UserError(f"{resume}: no language-model run to resume (no tokenizer in it).") from error
    data = training_data(cfg)
    stream = ContextStream(data, tokenizer, split="train", seed=cfg.seed, batch=cfg.training.batch_size)
    heldout = heldout_contexts(data, tokenizer, cfg.training.heldout_tokens)
    model = build_model(
        cfg.architecture,
        vocabulary=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        seed=cfg.seed,
    )
    device = pick_device(cfg.training.device)
    model.to(device)
    optimiser = build_optimiser(model, cfg.training)
    if resume is None:
        folder = new_folder(Path(cfg.runs_dir), cfg.name)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_description(folder, cfg, stream)
        return LMRun(cfg, folder, tokenizer, model, optimiser, stream, heldout, device)
    saved = load_state(resume, model, optimiser)
    if saved["data"] != stream.fingerprint():
        raise UserError(f"{resume}: the data is no longer what this run was trained on, so it cannot be resumed.")
    stream.load_state_dict(saved["stream"])
    write_description(resume, cfg, stream)
    return LMRun(cfg, resume, tokenizer, model, optimiser, stream, heldout, device, saved["step"])


def training_data(cfg: LMConfig) -> DataConfig:
    """The data in contexts of one token more than the model reads, so that every position is trained."""
    return cfg.data.model_copy(update={"context_length": cfg.architecture.context_length + 1})


def heldout_contexts(data: DataConfig, tokenizer: Any, tokens: int) -> Int[Tensor, "contexts length_plus_1"]:
    """The first held-out contexts, about `tokens` tokens."""
    wanted = math.ceil(tokens / data.context_length)
    stream = ContextStream(data, tokenizer, split="heldout", batch=wanted)
    return next(stream).tokens


def position(run: LMRun) -> dict[str, Any]:
    return {"step": run.step, "stream": run.stream.state_dict(), "data": run.stream.fingerprint()}


def write_description(folder: Path, cfg: LMConfig, stream: ContextStream) -> None:
    """config.yaml, and data.json with the fingerprint and the versions of what made the run."""
    import tokenizers
    import transformers

    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (folder / "config.yaml").write_text(dump_config(cfg))
    (folder / "data.json").write_text(json.dumps({"data": stream.fingerprint(), "versions": versions}, indent=2) + "\n")


def save_checkpoint(run: LMRun) -> Path:
    """`checkpoints/<tokens>`: weights in float32, configuration and tokenizer; whole or not at all."""
    folder = run.folder / "checkpoints" / str(run.tokens)
    if folder.is_dir():
        return folder
    beside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    run.model.save_pretrained(beside)
    run.tokenizer.save_pretrained(beside)
    beside.rename(folder)
    return folder


def new_folder(runs: Path, name: str) -> Path:
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def pick_device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


class Metrics:
    """metrics.jsonl and the lines that are shown."""

    def __init__(self, run: LMRun):
        self.run = run
        self.path = run.folder / "metrics.jsonl"
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= run.step]
            self.path.write_text("".join(line + "\n" for line in lines))
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.since = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def check_finite(self) -> None:
        if self.losses and not torch.stack([*self.losses, *self.norms]).isfinite().all():
            raise UserError(
                f"{self.run.folder}: the loss or its gradient was not finite in the {len(self.losses)} steps before "
                f"step {self.run.step}; the last saved state is from before them (try a lower training.lr)."
            )

    def log(self) -> None:
        run, training = self.run, self.run.cfg.training
        self.check_finite()
        seconds = time.perf_counter() - self.since
        tokens = len(self.losses) * training.batch_size * run.cfg.architecture.context_length
        line: dict[str, Any] = {
            "step": run.step,
            "tokens": run.tokens,
            "epoch": run.stream.epoch,
            "loss": torch.stack(self.losses).mean().item(),
            "grad_norm": torch.stack(self.norms).mean().item(),
            "lr": run.optimiser.param_groups[0]["lr"],
            "tokens_per_s": tokens / seconds,
        }
        if (
            run.step == run.steps
            or run.step // training.heldout_every > (run.step - len(self.losses)) // training.heldout_every
        ):
            line["heldout_loss"] = mean_loss(
                run.model, run.heldout, batch=training.batch_size, autocast=training.autocast
            )
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        remaining = (run.steps - run.step) / len(self.losses) * seconds
        heldout = f"  held-out {line['heldout_loss']:.4f}" if "heldout_loss" in line else ""
        print(
            f"step {run.step}/{run.steps}  {run.tokens:,} tokens  loss {line['loss']:.4f}{heldout}  "
            f"lr {line['lr']:.2e}  {line['tokens_per_s']:,.0f} tokens/s  {remaining / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
        self.losses, self.norms = [], []
        self.since = time.perf_counter()
