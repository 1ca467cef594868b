"""SAELens's own classes of every architecture: what they save is read, and what we write they load and do as we do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_tools.dictionaries import BatchTopKDictionary, GatedDictionary, MatryoshkaDictionary, ReLUDictionary
from sae_tools.dictionaries.formats.parts import KINDS
from sae_tools.dictionaries.formats.read import load_dictionary
from sae_tools.dictionaries.formats.saelens import load_saelens
from sae_tools.dictionaries.formats.support import MATRIX, Architecture
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError
from tests.dictionaries.formats.examples import close, example, rows

sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")

D, OUT, F, K = 12, 9, 40, 5
METADATA = {"model_name": "tiny", "hook_name": "blocks.2.hook_mlp_out", "context_size": 32, "prepend_bos": True}


def randomised(theirs: Any) -> Any:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * (0.3 if name == "r_mag" else 1))
        if hasattr(theirs, "threshold"):
            theirs.threshold.abs_()
        if hasattr(theirs, "topk_threshold"):
            theirs.topk_threshold.fill_(1.25)
    return theirs


def inference(name: str, **settings: Any) -> Any:
    cls = getattr(sae_lens, name)
    if "Transcoder" in name:
        settings |= {"d_out": OUT, "apply_b_dec_to_input": False}
    return randomised(cls(getattr(sae_lens, f"{name}Config")(d_in=D, d_sae=F, **settings)))


def training(name: str, **settings: Any) -> Any:
    return randomised(getattr(sae_lens, name)(getattr(sae_lens, f"{name}Config")(d_in=D, d_sae=F, **settings)))


INFERENCE = [
    ("StandardSAE", {}),
    ("StandardSAE", {"apply_b_dec_to_input": False}),
    ("TopKSAE", {"k": K}),
    ("TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}),
    ("JumpReLUSAE", {}),
    ("GatedSAE", {}),
    ("GatedSAE", {"apply_b_dec_to_input": False}),
    ("Transcoder", {}),
    ("SkipTranscoder", {}),
    ("JumpReLUTranscoder", {}),
    ("JumpReLUSkipTranscoder", {}),
]


@pytest.mark.parametrize(("name", "settings"), INFERENCE, ids=str)
def test_every_class_for_inference(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    inference(name, **settings).save_model(str(tmp_path))
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    read = load_saelens(tmp_path, fold_decoder_norm=False)[0]
    x = rows(D)
    with torch.no_grad():
        f = theirs.encode(x)
        assert (f > 0).any() and torch.equal(read.encode(x) > 0, f > 0)
        assert close(read.encode(x), f) and close(read(x), theirs(x))
        folded = load_dictionary(tmp_path)
        rescales = not name.startswith("TopK")
        assert close(folded.encode(x), f * (theirs.W_dec.norm(dim=-1) if rescales else 1))
        assert close(folded(x), theirs(x))


TRAINING = [
    ("StandardTrainingSAE", {}),
    ("TopKTrainingSAE", {"k": K}),
    ("TopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}),
    ("JumpReLUTrainingSAE", {}),
    ("GatedTrainingSAE", {}),
    ("BatchTopKTrainingSAE", {"k": 5.0}),
    ("BatchTopKTrainingSAE", {"k": 5.0, "rescale_acts_by_decoder_norm": False}),
    ("MatryoshkaBatchTopKTrainingSAE", {"k": 5.0, "matryoshka_widths": [8, 20, F]}),
]


@pytest.mark.parametrize(("name", "settings"), TRAINING, ids=str)
def test_every_class_for_training(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint does what SAELens's own export of it for inference does."""
    theirs = training(name, **settings)
    theirs.save_model(str(tmp_path / "training"))
    theirs.save_inference_model(str(tmp_path / "inference"))
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "inference"))
    read = load_dictionary(tmp_path / "training", fold_decoder_norm=False)
    x = rows(D)
    with torch.no_grad():
        f = theirs.encode(x)
        assert 0 < (f > 0).float().mean() < 1 and torch.equal(read.encode(x) > 0, f > 0)
        assert close(read.encode(x), f) and close(read(x), theirs(x))
    if "Batch" in name:
        assert isinstance(read, MatryoshkaDictionary if "Matryoshka" in name else BatchTopKDictionary)
        assert read.k == 5 and read.threshold == 1.25
    if isinstance(read, MatryoshkaDictionary):
        assert read.widths == [8, 20, F]
    if "Gated" in name:
        assert isinstance(read, GatedDictionary)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("key", [key for key, where in MATRIX if where == "saelens"], ids=lambda key: key.label)
def test_saelens_does_what_is_written(key: Architecture, unit: bool, tmp_path: Path) -> None:
    settings = {"subtract": False, "d_out": OUT} if key.transcoder else {}
    dictionary = example(key.kind, skip=key.skip, unit=unit, **settings)  # type: ignore[arg-type]
    write_dictionary(dictionary, tmp_path / "out", "saelens", METADATA)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "out"))
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.hook_name) == ("tiny", "blocks.2.hook_mlp_out")
    x = rows(D)
    with torch.no_grad():
        f = dictionary.encode(x) * (dictionary.decoder_norms if KINDS[key.kind].rescales else 1)
        assert torch.equal(theirs.encode(x) > 0, f > 0) and close(theirs.encode(x), f)
        assert close(theirs(x), dictionary(x))


def old(folder: Path, drop: tuple[str, ...] = (), **cfg: Any) -> None:
    """A folder as SAELens before version 6 wrote it."""
    flat = {
        "d_in": D,
        "d_sae": F,
        "dtype": "torch.float32",
        "device": "cuda",
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "hook_point_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "prepend_bos": True,
        "context_size": 128,
        "normalize_activations": "none",
        "dataset_path": "Skylion007/openwebtext",
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": "3.1.0",
        **cfg,
    }
    flat = {key: value for key, value in flat.items() if key not in drop}
    (folder / "cfg.json").write_text(json.dumps({**flat, "dtype": "float32", "device": "cpu"}))


@pytest.mark.parametrize(
    ("name", "settings", "cfg", "drop"),
    [
        ("StandardSAE", {}, {}, ()),
        ("StandardSAE", {}, {"normalize_activations": False, "apply_b_dec_to_input": True}, ("activation_fn_str",)),
        ("StandardSAE", {"apply_b_dec_to_input": False}, {"apply_b_dec_to_input": False}, ("normalize_activations",)),
        ("StandardSAE", {}, {"hook_name": "blocks.8.hook_resid_pre", "architecture": "standard"}, ("hook_point",)),
        ("GatedSAE", {}, {"architecture": "gated"}, ()),
        ("JumpReLUSAE", {}, {"architecture": "jumprelu"}, ()),
        ("TopKSAE", {"k": K}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, ()),
        ("TopKSAE", {"k": K}, {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "architecture": "x"}, ()),
        ("StandardSAE", {}, {"hook_point": "blocks.8.attn.hook_z", "sae_lens_version": "5.11.0"}, ()),
    ],
    ids=str,
)
def test_configurations_of_before_version_6(
    name: str, settings: dict[str, Any], cfg: dict[str, Any], drop: tuple[str, ...], tmp_path: Path
) -> None:
    inference(name, **settings).save_model(str(tmp_path))
    old(tmp_path, drop, **cfg)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    read, metadata = load_saelens(tmp_path, fold_decoder_norm=False)
    x = rows(D)
    with torch.no_grad():
        f = theirs.encode(x.unsqueeze(1) if theirs.hook_z_reshaping_mode else x)
        assert torch.equal(read.encode(x) > 0, f > 0) and close(read.encode(x), f)
        assert theirs.hook_z_reshaping_mode or close(read(x), theirs(x))
    for key in ("model_name", "hook_name", "context_size", "prepend_bos", "dataset_path"):
        assert metadata[key] == getattr(theirs.cfg.metadata, key)


def test_factors_of_finetuning_are_in_the_decoder(tmp_path: Path) -> None:
    """SAELens before version 6 multiplied activations by them before decoding; today's refuses such a file."""
    theirs = inference("StandardSAE")
    theirs.save_model(str(tmp_path))
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    factors = torch.linspace(0.5, 2, F)
    x = rows(D)
    expected = (theirs.encode(x) * factors) @ theirs.W_dec + theirs.b_dec
    save_file({**tensors, "scaling_factor": factors}, tmp_path / "sae_weights.safetensors")
    old(tmp_path, finetuning_scaling_factor=True)
    read = load_saelens(tmp_path, fold_decoder_norm=False)[0]
    with torch.no_grad():
        assert close(read.encode(x), theirs.encode(x)) and close(read(x), expected)
        assert close(load_dictionary(tmp_path)(x), expected)
    old(tmp_path)
    with pytest.raises(UserError, match="scaling_factor is there, but cfg.json does not say"):
        load_dictionary(tmp_path)
    save_file({**tensors, "scaling_factor": torch.ones(F)}, tmp_path / "sae_weights.safetensors")
    with torch.no_grad():
        assert close(load_dictionary(tmp_path)(x), theirs(x))


def test_a_scale_of_inputs_is_folded_where_it_is_known(tmp_path: Path) -> None:
    """As `fold_activation_norm_scaling_factor` does; the weights alone would be wrong, and so are refused."""
    for name, settings in (("StandardSAE", {}), ("JumpReLUSAE", {}), ("GatedSAE", {}), ("TopKSAE", {"k": K})):
        folder = tmp_path / name
        theirs = inference(name, normalize_activations="expected_average_only_in", **settings)
        theirs.save_model(str(folder))
        with pytest.raises(UserError, match="needs the factor .* there is no activation_scaler.json"):
            load_dictionary(folder)
        theirs.fold_activation_norm_scaling_factor(2.5)
        (folder / "activation_scaler.json").write_text('{"scaling_factor": 2.5, "has_whitening": false}')
        by_argument = load_saelens(folder, norm_scaling_factor=2.5)[0]
        x = rows(D)
        with torch.no_grad():
            assert close(load_saelens(folder, fold_decoder_norm=False)[0].encode(x), theirs.encode(x))
            assert close(load_dictionary(folder)(x), theirs(x)) and close(by_argument(x), theirs(x))
        for bad in ('{"scaling_factor": null}', '{"scaling_factor": -1}', "[]", "{"):
            (folder / "activation_scaler.json").write_text(bad)
            with pytest.raises(UserError, match="activation_scaler.json"):
                load_dictionary(folder)


def test_normalisation_of_each_row_is_refused(tmp_path: Path) -> None:
    for how in ("layer_norm", "constant_norm_rescale", "covariance_whitening"):
        inference("StandardSAE", normalize_activations=how).save_model(str(tmp_path))
        with pytest.raises(UserError, match=f"normalize_activations = '{how}' is not supported"):
            load_dictionary(tmp_path)


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    supported = "is not supported; expected one of standard, topk, jumprelu, gated, batchtopk, "
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, settings in (("MatchingPursuitSAE", {}), ("AbsTopKSAE", {"k": K})):
            theirs = inference(name, **settings)
            theirs.save_model(str(tmp_path))
            with pytest.raises(UserError, match=f"'{theirs.cfg.architecture()}' {supported}"):
                load_dictionary(tmp_path)


def test_thresholds_by_their_logarithm(tmp_path: Path) -> None:
    """As checkpoints of older versions have them."""
    training("JumpReLUTrainingSAE").save_model(str(tmp_path))
    before = load_dictionary(tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    with torch.no_grad():
        assert close(load_dictionary(tmp_path).encode(rows(D)), before.encode(rows(D)))


def test_bfloat16_weights(tmp_path: Path) -> None:
    theirs = inference("StandardSAE")
    theirs.to(torch.bfloat16)
    theirs.save_model(str(tmp_path))
    read = load_saelens(tmp_path, fold_decoder_norm=False)[0]
    assert isinstance(read, ReLUDictionary) and read.W_dec.dtype == torch.float32
    assert torch.equal(read.W_dec.bfloat16(), theirs.W_dec)
