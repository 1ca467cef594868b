"""SAEs that SAELens made and wrote, on the tiny model, and what its own code says that they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sae_tools.runs.tensors import load_tensors
from tests.jobs import text_corpus
from tests.report.browser.reports import Report
from tests.tiny_models import WIDTH, tiny_model

HOOKS = {"topk": "blocks.1.hook_mlp_out", "standard": "blocks.2.hook_resid_post"}
FEATURES, CONTEXT = 96, 48


def write_sae(kind: str, folder: Path, model: Path, corpus: Path) -> None:
    """Random weights of a SAELens class, in its own format by its own code, with metadata as its trainer leaves it.

    A few features never fire.
    """
    import sae_lens

    if kind == "topk":
        sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=8))
    else:
        sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES, apply_b_dec_to_input=True))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 if name.startswith("W") else 0.3))
        sae.b_enc -= 0.5
        sae.b_enc[:3] = -1e4
    metadata: dict[str, Any] = {
        "model_name": str(model),
        "hook_name": HOOKS[kind],
        "context_size": CONTEXT,
        "prepend_bos": True,
        "dataset_path": str(corpus),
    }
    for key, value in metadata.items():
        setattr(sae.cfg.metadata, key, value)
    sae.save_model(str(folder))


def foreign(kind: str, folder: Path) -> Report:
    """The folder that SAELens wrote, and the report that the one command makes of it."""
    sae = folder / kind
    sae.mkdir()
    corpus = text_corpus(sae)
    write_sae(kind, sae, tiny_model("gpt2"), corpus)
    # No setting but how much is read, and of a small file more than the usual share.
    command = [sys.executable, "-m", "sae_tools.cli.report", str(sae), "tokens=3000", "data.heldout=0.3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    page = folder / "out.html"
    done = subprocess.run([*command, "-o", str(page)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(page) in done.stdout
    return Report(page, folder / "out.analysis" / "features")


def by_saelens(report: Report, kind: str) -> dict[str, np.ndarray]:
    """Maxima and densities of all features on the report's tokens, by Hugging Face's model and SAELens's encoder.

    maximum: in the unit of the report, as with decoder rows of norm 1; `norm`: their own norms. `tokens`: how many.
    """
    import sae_lens

    corpus = load_tensors(report.files / "corpus-0.safetensors")[0]
    sae = sae_lens.SAE.load_from_disk(str(report.page.parent / kind))
    model = AutoModelForCausalLM.from_pretrained(sae.cfg.metadata["model_name"], dtype=torch.float32).eval()
    found: list[torch.Tensor] = []
    block = model.transformer.h[1].mlp if kind == "topk" else model.transformer.h[2]
    block.register_forward_hook(lambda module, args, out: found.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(corpus["tokens"].long())
        (x,) = found
        f = sae.encode(x[corpus["kept"]])
        unit = sae.W_dec.norm(dim=-1)
    return {
        "maximum": (f * unit).amax(0).numpy(),
        "density": (f > 0).double().mean(0).numpy(),
        "tokens": np.array(len(f)),
        "norm": unit.numpy(),
    }
