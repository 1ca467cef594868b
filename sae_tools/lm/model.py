"""Language models of GPT-2's and Llama's architecture with random weights, as Hugging Face models."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sae_tools.config import LMArchitectureConfig
from sae_tools.errors import UserError
from sae_tools.seeds import derived_seed


def build_model(
    cfg: LMArchitectureConfig, *, vocabulary: int, bos_token_id: Any, eos_token_id: Any, seed: int
) -> PreTrainedModel:
    """A model with initial weights drawn from `seed`, in float32, in training mode, without dropout.

    Raises UserError where d_model is no multiple of n_heads (and, for `llama`, of twice that).
    """
    per_head = cfg.n_heads * (2 if cfg.kind == "llama" else 1)
    if cfg.d_model % per_head:
        raise UserError(
            f"architecture.d_model: expected a multiple of {per_head} for {cfg.n_heads} heads, found {cfg.d_model}."
        )
    ids: dict[str, Any] = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": eos_token_id}
    with torch.random.fork_rng():  # transformers draws from the global generator
        torch.manual_seed(derived_seed(seed, "weights"))
        if cfg.kind == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary,
                    n_positions=cfg.context_length,
                    n_embd=cfg.d_model,
                    n_layer=cfg.n_layers,
                    n_head=cfg.n_heads,
                    n_inner=cfg.d_mlp,
                    activation_function="gelu_pytorch_tanh",  # gelu_new's formula, in one kernel
                    resid_pdrop=0.0,
                    embd_pdrop=0.0,
                    attn_pdrop=0.0,
                    tie_word_embeddings=cfg.tie_embeddings,
                    use_cache=False,
                    **ids,
                )
            )
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    max_position_embeddings=cfg.context_length,
                    hidden_size=cfg.d_model,
                    intermediate_size=cfg.d_mlp or 4 * cfg.d_model,
                    num_hidden_layers=cfg.n_layers,
                    num_attention_heads=cfg.n_heads,
                    num_key_value_heads=cfg.n_heads,
                    tie_word_embeddings=cfg.tie_embeddings,
                    use_cache=False,
                    **ids,
                )
            )
    return model.train()
