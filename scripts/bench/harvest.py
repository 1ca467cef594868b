"""How fast activations are harvested, against the bare Hugging Face layers that have to run anyway.

    python scripts/bench/harvest.py [--model FOLDER | --shape small | --shape 124M] [--site mlp_out@2]

Three ways to the same rows, run in turn; medians, and each ratio from the same rounds:

    bare       the Hugging Face base model cut after the site's layer, fused attention, nothing read
    harvest    Harvester.harvest: rows selected, float32, with tokens, positions and documents
    bridge     TransformerBridge.run_with_cache(stop_at_layer=...), nothing selected
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from sae_tools.activations.harvest import Harvester
from sae_tools.config import RowsConfig
from sae_tools.models.load import load_model
from sae_tools.models.sites import resolve_site
from sae_tools.rows import Contexts

SHAPES = {
    "small": {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096, "n_positions": 256},
    "124M": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
}


def random_model(shape: str) -> str:
    folder = tempfile.mkdtemp(prefix="bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    GPT2LMHeadModel(GPT2Config(**SHAPES[shape], bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    return folder


def bare_layers(folder: str, last: int) -> Callable[[torch.Tensor], object]:
    base = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval().base_model
    )
    layers = base.h if hasattr(base, "h") else base.layers
    del layers[last + 1 :]
    return lambda tokens: base(tokens, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face folder; default: random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--site", default="mlp_out@2")
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    folder = args.model or random_model(args.shape)
    model = load_model(Path(folder))
    site = resolve_site(model, args.site)
    harvester = Harvester(model, [site], RowsConfig())
    tokens = torch.randint(1, model.d_vocab, (args.contexts, args.length))
    contexts = Contexts(tokens, torch.zeros_like(tokens))
    bare = bare_layers(folder, site.layer)

    def bridge() -> None:
        model.bridge.run_with_cache(tokens, names_filter=[site.hook_name], stop_at_layer=site.layer + 1)

    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(tokens),
        "harvest": lambda: harvester.harvest(contexts),
        "bridge": bridge,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for way in ways.values():
            way()
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)

    print(f"{folder}: {site.name}, {args.contexts} x {args.length} tokens, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        ratio = statistics.median(b / t for b, t in zip(seconds["bare"], times, strict=True))
        print(f"{name:8} {tokens.numel() / statistics.median(times):10,.0f} tokens/s   {ratio:.2f} of bare")


if __name__ == "__main__":
    main()
