"""Figures of one definition are those of SAELens's `run_evals` (scripts/checks/run_evals.py does the work)."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.analysis.subjects import tiny
from tests.conftest import ROOT
from tests.tiny_models import BOS, CONTEXT, EOS

pytest.importorskip("sae_lens", reason="SAELens is not installed")


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("run_evals", ROOT / "scripts" / "checks" / "run_evals.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_evals"] = module
    spec.loader.exec_module(module)
    return module


def sae_folder(folder: Path, architecture: str, hook: str, width: int) -> Path:
    """An SAE of nobody's, in SAELens's format."""
    g = torch.Generator().manual_seed(1)
    W_dec = torch.nn.functional.normalize(torch.randn(48, width, generator=g), dim=1)
    tensors = {
        "W_enc": W_dec.T.contiguous() + 0.1 * torch.randn(width, 48, generator=g),
        "W_dec": W_dec,
        "b_enc": 0.1 * torch.randn(48, generator=g),
        "b_dec": 0.2 * torch.randn(width, generator=g),
    }
    cfg = {"architecture": architecture, "d_in": width, "d_sae": 48, "dtype": "float32"}
    if architecture == "topk":
        cfg |= {"k": 5, "rescale_acts_by_decoder_norm": False}
    if architecture == "jumprelu":
        tensors["threshold"] = 0.5 * torch.rand(48, generator=g)
    metadata = {"sae_lens_version": "6.54.12", "hook_name": hook, "hook_head_index": None, "prepend_bos": True}
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**cfg, "metadata": {**metadata, "context_size": CONTEXT // 2}}))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("architecture", "site", "hook", "width"),
    [
        ("topk", "mlp_out@1", "blocks.1.hook_mlp_out", 32),
        ("standard", "mlp_acts@1", "blocks.1.mlp.hook_post", 128),
        ("jumprelu", "resid_post@0", "blocks.0.hook_resid_post", 32),
    ],
)
def test_figures_of_one_definition_agree(check, tmp_path, architecture, site, hook, width, special):
    model = tiny("gpt2")
    folder = sae_folder(tmp_path / "sae", architecture, hook, width)
    tokens = torch.randint(0, 256, (8, CONTEXT // 2), generator=torch.Generator().manual_seed(3))
    tokens[:, 0] = BOS
    tokens[2, 11], tokens[5, 20] = BOS, EOS
    lines = list(check.compare(model, folder, site, tokens, batch=4, special=special))
    assert len(lines) == 14
    for line in lines:
        # one ratio over all tokens against a mean of batches' ratios, on two batches of a hundred tokens
        loose = line.figure == "relative bias"
        assert line.difference < (0.02 if loose else 1e-4), line
