"""ReLU with L1: the invariances of its two forms (its gradients: test_battery.py)."""

from __future__ import annotations

import torch

from tests.dictionaries.reference import make, rows


def test_decoder_norm_form_ignores_how_a_feature_is_scaled() -> None:
    factor = torch.linspace(0.2, 5, 30, dtype=torch.float64)
    x = rows(50, 8)
    losses = {}
    for form in ("unit-norm", "decoder-norm"):
        dictionary = make(f"relu {form}", d=8, d_sae=30)
        before = dictionary.losses(x, l1=0.7).loss.detach()
        with torch.no_grad():
            dictionary.encoder *= factor.unsqueeze(1)
            dictionary.b_enc *= factor
            dictionary.W_dec /= factor.unsqueeze(1)
        losses[form] = torch.allclose(before, dictionary.losses(x, l1=0.7).loss)
    assert losses == {"unit-norm": False, "decoder-norm": True}
