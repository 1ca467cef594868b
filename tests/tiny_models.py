"""Small random-weight language models as Hugging Face folders, for the tests of every room.

`tiny_model(kind)` writes one (once per process) and returns its folder. Norm weights and all biases are randomised,
so that a weight forgotten or folded shows; weights are large enough for the blocks to matter; the tokenizer is
byte-level (256 bytes and `<bos>`, `<eos>`, `<pad>`), so it encodes any text, and its vocabulary is smaller than the
model's, as Pythia's is.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM as AutoModel
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

BOS, EOS, PAD = 256, 257, 258
VOCABULARY, LAYERS, WIDTH, HIDDEN, HEADS, CONTEXT = 264, 3, 32, 64, 4, 64

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**_GPT2),  # d_mlp is 4 d_model here: n_inner is not given
    "neox-parallel": GPTNeoXConfig(**_SHAPE, use_parallel_residual=True),
    "neox-sequential": GPTNeoXConfig(**_SHAPE, use_parallel_residual=False),
    "llama": LlamaConfig(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=False, mlp_bias=False),
    "llama-tied": LlamaConfig(**_SHAPE, num_key_value_heads=2, tie_word_embeddings=True, mlp_bias=True),
    "granite": GraniteConfig(**_SHAPE, num_key_value_heads=2, logits_scaling=4.0, residual_multiplier=0.5),
    "gemma2": Gemma2Config(**_SHAPE, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=8),
}
KINDS = ("gpt2", "neox-parallel", "neox-sequential", "llama", "llama-tied")
"""The architectures that every room supports; `gemma2` (post-norms, soft caps) is there for what must be refused,
`granite` for logits that are scaled."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, without merges: token i is byte i in GPT-2's byte alphabet, then the three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<bos>", "<eos>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@functools.cache
def tiny_model(kind: str = "gpt2", *, dtype: str = "float32", seed: int = 0) -> Path:
    """A folder with a random model of `kind` (see KINDS, or "gemma2"), weights stored as `dtype`, and a tokenizer.

    The folder is shared by all callers in the process: copy it before changing a file.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(_CONFIGS[kind])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norm weights and biases
                    parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
