"""One loaded model per architecture, with its Hugging Face twin, loaded apart from it, as the reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sae_tools.models.load import LanguageModel, load_model
from tests.tiny_models import KINDS, tiny_model

MODULES = {  # by architecture: list of blocks, attention, norm before the MLP, MLP, its output matrix, final norm
    "GPT2LMHeadModel": ("h", "attn", "ln_2", "mlp", "mlp.c_proj", "ln_f"),
    "GPTNeoXForCausalLM": (
        "layers",
        "attention",
        "post_attention_layernorm",
        "mlp",
        "mlp.dense_4h_to_h",
        "final_layer_norm",
    ),
    "LlamaForCausalLM": ("layers", "self_attn", "post_attention_layernorm", "mlp", "mlp.down_proj", "norm"),
}


class Pair:
    """A LanguageModel and the same weights as plain Hugging Face model, which knows nothing of bridge or view."""

    def __init__(self, folder: Path):
        self.model: LanguageModel = load_model(folder)
        self.hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(3, 256, (3, 20), generator=generator)
        blocks, *self.names = MODULES[type(self.hf).__name__]
        self.blocks = getattr(self.hf.base_model, blocks)

    @property
    def parallel(self) -> bool:
        return bool(getattr(self.hf.config, "use_parallel_residual", False))

    def place(self, kind: str, layer: int) -> tuple[nn.Module, str]:
        """The Hugging Face module and side where a site is."""
        attention, norm, mlp, matrix, _ = self.names
        block = self.blocks[layer]
        path, side = {
            "resid_pre": ("", "in"),
            "attn_out": (attention, "out"),
            "resid_mid": (norm, "in"),
            "mlp_in": (mlp, "in"),
            "mlp_acts": (matrix, "in"),
            "mlp_out": (mlp, "out"),
            "resid_post": ("", "out"),
        }[kind]
        return block.get_submodule(path), side

    def read(self, kind: str, layer: int) -> Tensor:
        seen: list[Tensor] = []
        with torch.no_grad(), hooked(*self.place(kind, layer), seen.append):
            self.hf(self.tokens, use_cache=False)
        assert len(seen) == 1
        return seen[0]

    def logits(self, *edits: tuple[str, int, Callable[[Tensor], Tensor | None]]) -> Tensor:
        with torch.no_grad():
            if not edits:
                return self.hf(self.tokens, use_cache=False).logits
            (kind, layer, function), *rest = edits
            with hooked(*self.place(kind, layer), function):
                return self.logits(*rest)


@contextmanager
def hooked(module: nn.Module, side: str, function: Callable[[Tensor], Tensor | None]):
    def after(_module: nn.Module, _args: Any, out: Any) -> Any:
        new = function(out[0] if isinstance(out, tuple) else out)
        return new if new is None or not isinstance(out, tuple) else (new, *out[1:])

    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        new = function(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    if side == "out":
        handle = module.register_forward_hook(after)
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


_pairs: dict[str, Pair] = {}


@pytest.fixture(params=[*KINDS, "stories260K"])
def pair(request: pytest.FixtureRequest) -> Pair:
    kind = request.param
    if kind not in _pairs:
        folder = request.getfixturevalue("shared") / "models" / kind if kind == "stories260K" else tiny_model(kind)
        _pairs[kind] = Pair(folder)
    return _pairs[kind]


@pytest.fixture(scope="session")
def gpt2() -> LanguageModel:
    return load_model(tiny_model("gpt2"))


@pytest.fixture(scope="session")
def parallel() -> LanguageModel:
    return load_model(tiny_model("neox-parallel"))


@pytest.fixture(scope="session")
def gemma() -> LanguageModel:
    return load_model(tiny_model("gemma2"))
