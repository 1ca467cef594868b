"""Whole runs from text to a trained TopK dictionary, alike wherever both can be: our job and SAELens's runner."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_tools.activations.harvest import collect_rows
from sae_tools.analysis.corpus import open_heldout
from sae_tools.analysis.reconstruction import VarianceUnexplained
from sae_tools.config import DataConfig, JobConfig
from sae_tools.data.documents import split_of
from sae_tools.data.sources import open_documents
from sae_tools.models.load import LanguageModel
from sae_tools.rows import Rows
from sae_tools.training.job import Job, open_harvester
from sae_tools.training.loop import train_job
from sae_tools.training.sites import all_sites, resolve_sites
from sae_tools.training.start import start_job

CHARACTERS_PER_TOKEN = 6
"""More than the text has, so that no document comes twice."""
HELDOUT = 0.05


@dataclass(frozen=True)
class RunSetting:
    tokens: int = 327_680
    d_sae: int = 4096
    k: int = 32
    batch: int = 2048
    site: str = "mlp_out@2"
    context: int = 256
    lr: float = 1e-3
    estimate_rows: int = 32_768
    """From which both estimate the scale of activations before training."""

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    @property
    def warmup(self) -> int:
        return self.steps // 10

    @property
    def decay(self) -> int:
        return self.steps // 5


class Outcome(dict[str, float]):
    """tokens_per_s, seconds, fvu, l0 and, for sae_tools, seconds by activity."""


def write_text(path: Path, characters: int) -> list[str]:
    """Training documents of the interpreter's own sources, enough for `characters`, as JSONL; returns those of them
    that a job reading the file trains on, in order."""
    source = open_documents(DataConfig(source="python-stdlib"), split="train", seed=0)
    texts: list[str] = []
    with path.open("w") as file:
        while characters > 0 and (document := source.read()) is not None:
            text = document.text or ""
            characters -= len(text)
            file.write(json.dumps({"text": text}) + "\n")
            texts.append(text)
    return [text for text in texts if split_of(text, HELDOUT) == "train"]


def job_config(setting: RunSetting, text: Path, folder: Path, model: str = "bundled") -> JobConfig:
    """A job on the file `text`; AuxK has nothing to do, since no feature can be dead before the end."""
    return JobConfig.model_validate(
        {
            "name": "bench",
            "runs_dir": str(folder),
            "model": {"name": model},
            "data": {
                "source": str(text),
                "context_length": setting.context,
                "heldout": HELDOUT,
                "shuffle_characters": 500_000,
            },
            "dictionaries": {
                "bench": {
                    "site": setting.site,
                    "d_sae": setting.d_sae,
                    "architecture": {"kind": "topk", "k": setting.k, "dead_after_tokens": 10 * setting.tokens},
                }
            },
            "training": {
                "tokens": setting.tokens,
                "batch_size": setting.batch,
                "lr": setting.lr,
                "warmup_steps": setting.warmup,
                "decay_fraction": 0.2,
                "estimate_rows": setting.estimate_rows,
                "checkpoints": 1,
            },
        }
    )


def heldout_rows(model: LanguageModel, cfg: JobConfig, count: int) -> Rows:
    """Rows of the interpreter's sources that neither run trains on."""
    data = DataConfig(source="python-stdlib", context_length=cfg.data.context_length)
    sites = all_sites(resolve_sites(cfg, model).values())
    return collect_rows(open_heldout(model, data, batch=16), open_harvester(cfg, model, sites), count)


def quality(
    x: Float[Tensor, "rows d"],
    encode: Callable[[Tensor], Tensor],
    reconstruct: Callable[[Tensor], Tensor],
) -> tuple[float, float]:
    """(FVU, L0) on rows of a dictionary's own space; FVU is the same in any space that differs by one scalar."""
    fvu, active = VarianceUnexplained(), 0
    with torch.no_grad():
        for part in x.split(4096):
            fvu.update(part, reconstruct(part))
            active += int((encode(part) != 0).sum())
    return fvu.finish(), active / len(x)


# ------------------------------------------------------------------------------------------------------------ sae_tools


class Silent:
    """An observer that shows nothing."""

    def update(self, tokens: int) -> None: ...

    def record(self, record: dict) -> None: ...


class Timed:
    """Stands in for a part of the job and adds up the seconds that one of its methods takes in the main thread."""

    def __init__(self, part: Any, method: str):
        self._part, self._method = part, method
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return self._clocked(found) if name == self._method else found

    def __iter__(self) -> Timed:
        return self

    def __next__(self) -> Any:
        return self._clocked(self._part.__next__)()

    def _clocked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if threading.current_thread() is threading.main_thread():
                    self.seconds += time.perf_counter() - start

        return run


def instrument(job: Job) -> dict[str, Timed]:
    """Clocks on the job's buffer, and on the two things that the buffer does not do itself: text and harvest."""
    buffer: Any = job.buffer
    clocks = {
        "buffer": Timed(buffer, "__next__"),
        "text": Timed(buffer.stream, "__next__"),
        "harvest": Timed(buffer.harvester, "harvest"),
    }
    buffer.stream, buffer.harvester = clocks["text"], clocks["harvest"]
    job.buffer = clocks["buffer"]  # type: ignore[assignment]
    return clocks


def run_ours(cfg: JobConfig, model: LanguageModel, heldout: Rows | None) -> Outcome:
    """From the text to the last checkpoint, estimates and all; the language model is in memory already."""
    began = time.perf_counter()
    job = start_job(cfg, model)
    started = time.perf_counter()
    clocks = instrument(job)
    train_job(job, Silent())
    ended = time.perf_counter()
    job.close()
    out = Outcome(seconds=ended - began, tokens_per_s=job.tokens / (ended - began))
    text, harvest = clocks["text"].seconds, clocks["harvest"].seconds
    out.update(start=started - began, text=text, harvest=harvest, buffer=clocks["buffer"].seconds - text - harvest)
    out["buffer_share"] = out["buffer"] / out["seconds"]
    if heldout is not None:
        dictionary, z = job.trainees[0].dictionary, job.trainees[0].rows_in_space(heldout)
        out["fvu"], out["l0"] = quality(z, dictionary.encode, dictionary)
    return out


# -------------------------------------------------------------------------------------------------------------- SAELens


def hooked_transformer(model: LanguageModel) -> Any:
    """The GPT-2 in `model` as a HookedTransformer, SAELens's default class of models, weights as they are."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoModelForCausalLM

    source = AutoModelForCausalLM.from_pretrained(str(model.folder), dtype=torch.float32).eval()
    c = source.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer,
        d_model=c.n_embd,
        n_ctx=c.n_positions,
        d_head=c.n_embd // c.n_head,
        n_heads=c.n_head,
        d_mlp=c.n_inner or 4 * c.n_embd,
        d_vocab=c.vocab_size,
        act_fn="gelu_pytorch_tanh",
        eps=c.layer_norm_epsilon,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        model_name="local",
        device="cpu",
    )
    hooked = HookedTransformer(cfg, tokenizer=model.tokenizer, default_padding_side="right")
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(source, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        difference = (hooked(tokens) - source(tokens).logits).abs().max().item()
    if difference > 1e-3:
        raise RuntimeError(f"the converted model's logits differ by {difference}")
    return hooked.requires_grad_(False).eval()


def run_saelens(
    setting: RunSetting, hooked: Any, texts: list[str], hook: str, d_in: int, heldout: Float[Tensor, "rows d"] | None
) -> Outcome:
    """The runner with its defaults, but for what is set here: sizes and schedule as in the job, rows at BOS left out,
    inputs scaled by an estimate on as many rows, nothing logged or written."""
    from datasets import Dataset
    from sae_lens import (
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        LoggingConfig,
        TopKTrainingSAEConfig,
    )

    dataset = Dataset.from_dict({"text": texts})
    sae_config = TopKTrainingSAEConfig(
        d_in=d_in, d_sae=setting.d_sae, k=setting.k, device="cpu", normalize_activations="expected_average_only_in"
    )
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        cfg = LanguageModelSAERunnerConfig(
            sae=sae_config,
            model_name="local",
            hook_name=hook,
            dataset_path="local",
            is_dataset_tokenized=False,
            streaming=False,
            context_size=setting.context,
            training_tokens=setting.tokens,
            train_batch_size_tokens=setting.batch,
            exclude_special_tokens=True,
            n_batches_for_norm_estimate=max(1, setting.estimate_rows // setting.batch),
            lr=setting.lr,
            lr_warm_up_steps=setting.warmup,
            lr_decay_steps=setting.decay,
            lr_end=0.0,
            device="cpu",
            checkpoint_path=None,
            output_path=None,
            logger=LoggingConfig(log_to_wandb=False),
        )
        sae = LanguageModelSAETrainingRunner(cfg, override_model=hooked, override_dataset=dataset).run()
        seconds = time.perf_counter() - began
    out = Outcome(seconds=seconds, tokens_per_s=setting.tokens / seconds)
    if heldout is not None:
        out["fvu"], out["l0"] = quality(heldout, sae.encode, sae)
    return out


def temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-")
