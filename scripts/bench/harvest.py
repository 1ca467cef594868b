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
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from measure.timing import interleave, paired_ratio
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from sae_tools.activations.harvest import Harvester
from sae_tools.config import RowsConfig
from sae_tools.memory import keep_freed_memory
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


def compare(folder: str, site_name: str, contexts: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by way, for `contexts` contexts of `length` random tokens."""
    model = load_model(Path(folder))
    site = resolve_site(model, site_name)
    harvester = Harvester(model, [site], RowsConfig())
    tokens = torch.randint(1, model.d_vocab, (contexts, length), generator=torch.Generator().manual_seed(0))
    given = Contexts(tokens, torch.zeros_like(tokens))
    bare = bare_layers(folder, site.layer)

    def bridge() -> None:
        model.bridge.run_with_cache(tokens, names_filter=[site.hook_name], stop_at_layer=site.layer + 1)

    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(tokens),
        "harvest": lambda: harvester.harvest(given),
        "bridge": bridge,
    }
    with torch.no_grad():
        return interleave(ways, rounds)


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
    keep_freed_memory()
    torch.manual_seed(0)
    folder = args.model or random_model(args.shape)
    seconds = compare(folder, args.site, args.contexts, args.length, args.rounds)
    tokens = args.contexts * args.length
    print(f"{folder}: {args.site}, {args.contexts} x {args.length} tokens, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        ratio = paired_ratio(seconds["bare"], times)
        print(f"{name:8} {tokens / statistics.median(times):10,.0f} tokens/s   {ratio:.2f} of bare")


if __name__ == "__main__":
    main()
