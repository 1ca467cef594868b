"""dictionary_learning's files, made here as its own classes save them, and what these classes would do with them.

The classes themselves are asked in `scripts/interop`, in an environment of their own.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sae_tools.dictionaries import BatchTopKDictionary, MatryoshkaDictionary
from sae_tools.dictionaries.formats.dictionary_learning import read_dictionary_learning
from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.errors import UserError
from tests.dictionaries.formats.examples import close, rows

D, F, K = 12, 40, 5
GROUPS = [8, 12, 20]


class Theirs(nn.Module):
    """A state dict in a class's names and shapes, at random, and the library's arithmetic on it."""

    def __init__(self, name: str):
        super().__init__()
        g = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=g))

        self.name = name
        plain = name in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
        if plain:
            self.W_enc, self.b_enc, self.W_dec, self.b_dec = draw(D, F), draw(F), draw(F, D), draw(D)
        else:
            self.encoder = nn.Linear(D, F, bias=name != "GatedAutoEncoder")
            self.decoder = nn.Linear(F, D, bias=name == "AutoEncoderNew")
            self.encoder.weight = nn.Parameter(draw(D, F).detach().T)  # a transposed one is saved with its strides
            for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
                parameter.data.copy_(torch.randn(parameter.shape, generator=g))
        if name == "AutoEncoder":
            self.bias = draw(D)
        if name in ("AutoEncoderTopK", "BatchTopKSAE"):
            self.b_dec = draw(D)
        if name == "GatedAutoEncoder":
            self.decoder_bias, self.r_mag = draw(D), nn.Parameter(0.3 * draw(F).detach())
            self.gate_bias, self.mag_bias = draw(F), draw(F)
        if name == "JumpReluAutoEncoder":
            self.threshold = nn.Parameter(draw(F).detach().abs())
        if name in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            self.register_buffer("k", torch.tensor(K, dtype=torch.int))
            self.register_buffer("threshold", torch.tensor(1.5))
        if name == "MatryoshkaBatchTopKSAE":
            self.register_buffer("group_sizes", torch.tensor(GROUPS))

    def encode(self, x: Tensor) -> Tensor:
        s: Any = self
        if self.name == "AutoEncoder":
            return (s.encoder(x - s.bias)).relu()
        if self.name == "AutoEncoderNew":
            return s.encoder(x).relu()
        if self.name == "AutoEncoderTopK":
            post = s.encoder(x - s.b_dec).relu()
            top = post.topk(K, dim=-1)
            return torch.zeros_like(post).scatter(-1, top.indices, top.values)
        if self.name == "BatchTopKSAE":
            post = s.encoder(x - s.b_dec).relu()
            return post * (post > s.threshold)
        if self.name == "MatryoshkaBatchTopKSAE":
            post = ((x - s.b_dec) @ s.W_enc + s.b_enc).relu()
            return post * (post > s.threshold)
        if self.name == "JumpReluAutoEncoder":
            pre = x @ s.W_enc + s.b_enc
            return (pre * (pre > s.threshold)).relu()
        x_enc = s.encoder(x - s.decoder_bias)
        return ((x_enc + s.gate_bias) > 0).float() * (s.r_mag.exp() * x_enc + s.mag_bias).relu()

    def decoder_rows(self) -> Tensor:
        return self.W_dec if hasattr(self, "W_dec") else self.decoder.weight.T

    def forward(self, x: Tensor) -> Tensor:
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": None, "GatedAutoEncoder": "decoder_bias"}.get(
            self.name, "b_dec"
        )
        added = self.decoder.bias if bias is None else getattr(self, bias)
        return self.encode(x) @ self.decoder_rows() + added


CLASSES = [
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
    "GatedAutoEncoder",
]
COMPETING = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def config(name: str, **changes: Any) -> dict[str, Any]:
    trainer = {
        "trainer_class": "SomeTrainer",
        "dict_class": name,
        "lr": 1e-3,
        "activation_dim": D,
        "dict_size": F,
        "device": "cuda:0",
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_3",
        **({"k": K} if name in COMPETING else {}),
        **({"group_sizes": GROUPS, "group_weights": [1 / 3] * 3} if name == "MatryoshkaBatchTopKSAE" else {}),
        **changes,
    }
    return {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "ctx_len": 128, "device": "cuda:0"}}


def saved(name: str, folder: Path, **changes: Any) -> Theirs:
    theirs = Theirs(name)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(theirs.state_dict(), folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(config(name, **changes)))
    return theirs


@pytest.mark.parametrize("name", CLASSES)
def test_their_classes_do_what_is_read(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path)
    x = rows(D)
    with torch.no_grad():
        f, norms = theirs.encode(x), theirs.decoder_rows().norm(dim=-1)
        assert 0.02 < (f > 0).float().mean() < 0.98
        as_it_is = load_dictionary(tmp_path, fold_decoder_norm=False)
        assert torch.equal(as_it_is.encode(x) > 0, f > 0) and close(as_it_is.encode(x), f)
        assert close(as_it_is(x), theirs(x)) and torch.allclose(as_it_is.decoder_norms, norms)
        read = load_dictionary(tmp_path)
        folded = 1 if name in COMPETING else norms
        assert close(read.encode(x), f * folded) and close(read(x), theirs(x))
    said = read.metadata
    assert (said["model_name"], said["hook_name"]) == ("EleutherAI/pythia-70m-deduped", "blocks.3.hook_resid_post")
    assert (said["context_size"], said["architecture"], said["trainer"]["lr"]) == (128, name, 1e-3)


def test_the_april_trainer_calls_both_classes_by_one_name(tmp_path: Path) -> None:
    """Its config.json says AutoEncoder whichever it has trained; the tensors tell."""
    theirs = saved("AutoEncoderNew", tmp_path, dict_class="AutoEncoder")
    read = load_dictionary(tmp_path)
    with torch.no_grad():
        assert close(read(rows(D)), theirs(rows(D)))
    assert read.metadata["architecture"] == "AutoEncoderNew" and not read.subtract_b_dec
    saved("AutoEncoder", tmp_path, dict_class="AutoEncoderNew")  # nobody writes that
    with pytest.raises(UserError, match="bias"):
        load_dictionary(tmp_path)


def test_a_threshold_that_is_not_known_yet_lets_everything_positive_through(tmp_path: Path) -> None:
    for name, kind in (("BatchTopKSAE", BatchTopKDictionary), ("MatryoshkaBatchTopKSAE", MatryoshkaDictionary)):
        theirs: Any = saved(name, tmp_path)
        theirs.threshold.fill_(-1.0)
        torch.save(theirs.state_dict(), tmp_path / "ae.pt")
        read = load_dictionary(tmp_path)
        assert isinstance(read, kind) and read.threshold == 0
        with torch.no_grad():
            assert close(read.encode(rows(D)), theirs.encode(rows(D)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = saved("AutoEncoderTopK", tmp_path).to(dtype)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    read = load_dictionary(tmp_path)
    assert read.encoder.dtype == torch.float32
    assert torch.equal(read.encoder.to(dtype), theirs.encoder.weight)


def test_the_state_dict_alone(tmp_path: Path) -> None:
    """Its names tell the class, but for the two that have the same."""
    for name in CLASSES:
        saved(name, tmp_path / name)
        (tmp_path / name / "config.json").unlink()
        if name in ("AutoEncoderTopK", "BatchTopKSAE"):
            with pytest.raises(UserError, match="have the same tensors; put the config.json beside it"):
                load_dictionary(tmp_path / name / "ae.pt")
        else:
            assert load_dictionary(tmp_path / name / "ae.pt").metadata["architecture"] == name
            assert "model_name" not in load_dictionary(tmp_path / name).metadata


def test_a_checkpoint_on_the_way(tmp_path: Path) -> None:
    saved("BatchTopKSAE", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_100.pt")
    assert load_dictionary(tmp_path / "checkpoints" / "ae_100.pt").metadata["architecture"] == "BatchTopKSAE"


@pytest.mark.parametrize(
    ("module", "io", "hook"),
    [
        ("resid_post_layer_5", "out", "blocks.5.hook_resid_post"),
        ("gpt_neox.layers.2", "out", "blocks.2.hook_resid_post"),
        ("transformer.h.11.mlp", "out", "blocks.11.hook_mlp_out"),
        ("model.layers.0.self_attn", "out", "blocks.0.hook_attn_out"),
        ("transformer.h.11.mlp", "in", None),
        ("transformer.h.11.mlp.c_fc", "out", None),
        ("gpt_neox.layers.2.attention", "out", None),
        (None, "out", None),
        (7, "out", None),
    ],
)
def test_where_it_reads_is_told_or_left_out(module: Any, io: str, hook: str | None, tmp_path: Path) -> None:
    saved("AutoEncoder", tmp_path)
    changed = config("AutoEncoder", submodule_name=module)
    changed["buffer"]["io"] = io
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert load_dictionary(tmp_path).metadata.get("hook_name") == hook


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class 'CrossCoder' is not supported; expected AutoEncoder, "),
        ({"dict_class": ["x"]}, "is not supported"),
        ({"dict_class": "AutoEncoder"}, "tensor 'b_dec' is not expected"),
        ({"dict_class": "JumpReluAutoEncoder"}, "tensor 'W_enc' is missing"),
        ({"k": 6}, "k is 6, and ae.pt says 5"),
        ({"k": "5"}, "'k' must be a positive integer"),
        ({"activation_dim": 13}, "activation_dim is 13, and the tensors of ae.pt say 12"),
        ({"dict_size": None}, "'dict_size' must be a positive integer"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved("BatchTopKSAE", tmp_path, **changes)
    with pytest.raises(UserError, match=sentence):
        read_dictionary_learning(tmp_path)


def test_group_sizes_have_to_add_up(tmp_path: Path) -> None:
    theirs: Any = saved("MatryoshkaBatchTopKSAE", tmp_path)
    for groups in ([8, 12], [40, 0], [41, -1], [8] * 6, [2**62, 2**62, 40]):
        state = OrderedDict(theirs.state_dict())
        state["group_sizes"] = torch.tensor(groups)
        torch.save(state, tmp_path / "ae.pt")
        with pytest.raises(UserError, match="group_sizes must be positive and add up to the 40 features"):
            load_dictionary(tmp_path)
