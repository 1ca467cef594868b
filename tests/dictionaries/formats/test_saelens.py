"""SAELens folders: SAELens itself must do with ours what we do, and we with its own what it does."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_tools.config import BatchTopKConfig, DictionaryConfig, JumpReLUConfig, ReLUConfig, SpaceConfig, TopKConfig
from sae_tools.dictionaries import (
    BatchTopKDictionary,
    Dictionary,
    JumpReLUDictionary,
    ReLUDictionary,
    TopKDictionary,
    build_dictionary,
    normalise_decoder_,
)
from sae_tools.dictionaries.formats import export_saelens, load_saelens, unfold
from sae_tools.dictionaries.formats.folding import fold
from sae_tools.errors import UserError
from sae_tools.models.final_norm import FinalNorm
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.sites import Site, resolve_site
from sae_tools.rows import Rows
from sae_tools.spaces import Space, build_space, gram, root_of

sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")

METADATA = {"model_name": "tiny", "context_size": 32, "prepend_bos": True, "tokens": 1000}


def thresholds(dictionary: Dictionary) -> Tensor | None:
    """[d_sae]: above which pre-activation each feature fires; None where that is not what decides."""
    if isinstance(dictionary, BatchTopKDictionary | JumpReLUDictionary):
        return dictionary.threshold.detach().double().expand(dictionary.d_sae)
    return None


ARCHITECTURES = {
    "topk": TopKConfig(k=5),
    "batchtopk": BatchTopKConfig(k=5),
    "jumprelu": JumpReLUConfig(init_threshold=0.5, bandwidth=0.3),
    "relu": ReLUConfig(),
    "relu-decoder-norm": ReLUConfig(form="decoder-norm"),
}


def trained(cfg: DictionaryConfig, space: Space, rows: Rows, steps: int = 40) -> Dictionary:
    """A dictionary that has left its start, so that no bias is zero and no tie holds."""
    z = space.read(rows)
    g = torch.Generator().manual_seed(0)
    dictionary = build_dictionary(cfg, space.dim, g, z, project=space.project)
    optimiser = torch.optim.Adam(dictionary.parameters(), lr=3e-3, fused=True)
    for _ in range(steps):
        optimiser.zero_grad()
        out = dictionary.losses(z[torch.randint(0, len(z), (256,), generator=g)], l1=0.3)
        out.loss.backward()
        optimiser.step()
        if dictionary.unit_decoder:
            normalise_decoder_(dictionary)
        dictionary.after_step_(out.terms, torch.zeros(()))
    return dictionary


def synthetic(kind: str, **settings: Any) -> tuple[Space, Rows]:
    """A space and rows of it, position 0 left out, with a strong mean and channels of unequal size."""
    d, g = 16, torch.Generator().manual_seed(1)
    name = {"mlp_acts": "mlp_acts", "resid": "resid_post"}.get(kind, "mlp_out")
    site = Site(name, 2, f"blocks.2.hook_{name}", d)
    x = torch.randn(2000, d, generator=g) * torch.linspace(0.3, 4, d) + torch.linspace(-2, 3, d)
    ids = torch.arange(2000)
    rows = Rows({site.name: x}, ids, 1 + ids % 30, ids, 1 + torch.rand(2000, generator=g))
    root = root_of(gram(torch.randn(d, 60, generator=g), 1 + 0.3 * torch.randn(d, generator=g), True))
    cfg = SpaceConfig(kind=kind, **settings)  # type: ignore[arg-type]
    return build_space(cfg, site, None, rows, root=root), rows  # type: ignore[arg-type]


def agrees_with_saelens(dictionary: Dictionary, space: Space, folder: Path, rows: Rows) -> None:
    """The same features on every row with a clear k-th place, or with none just at its threshold, and the same
    reconstruction, to 1e-5 relative."""
    x = rows.activations[space.site.name].float()
    theirs = sae_lens.SAE.load_from_disk(str(folder))
    with torch.no_grad():
        z = space.forward(x)
        f, f_theirs = dictionary.encode(z), theirs.encode(x)
        clear = torch.ones(len(x), dtype=torch.bool)
        if isinstance(dictionary, TopKDictionary):
            pre = dictionary.pre_activations(z).topk(dictionary.k + 1, dim=-1).values
            clear = (pre[:, -2] - pre[:, -1]) > 1e-4 * pre[:, -2].abs()
            assert clear.float().mean() > 0.99
        threshold = thresholds(dictionary)
        if threshold is not None:
            assert (threshold > 0).any() and (f > 0).any()
            clear = ((dictionary.pre_activations(z) - threshold).abs() > 1e-5 * (1 + threshold)).all(-1)
            assert clear.float().mean() > 0.98
        units = torch.ones(dictionary.d_sae) if dictionary.unit_decoder else dictionary.W_dec.norm(dim=-1)
        edge = (f * units < 1e-4 * f.max()) & (f_theirs < 1e-4 * f.max())  # next to a ReLU's threshold
        assert (((f > 0) == (f_theirs > 0)) | edge)[clear].all()
        assert ((f * units - f_theirs)[clear].norm() / f_theirs[clear].norm()) < 1e-5
        ours = space.lift(dictionary.decode(f))
        assert ((ours - theirs.decode(f_theirs))[clear].norm(dim=-1) / ours[clear].norm(dim=-1)).max() < 1e-5


SPACES = [
    ("mlp_acts", {}),
    ("mlp_acts", {"rotation": 1, "centre": "mean"}),
    ("resid_update", {"centre": "mean"}),
    ("resid", {"rescale": False}),
    ("logit_update", {}),
    ("logit_update", {"centre": "mean", "rotation": 2}),
]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize(("kind", "settings"), SPACES, ids=str)
def test_saelens_does_what_we_do(kind: str, settings: dict[str, Any], architecture: str, tmp_path: Path) -> None:
    space, rows = synthetic(kind, **settings)
    cfg = DictionaryConfig(site=space.site.name, architecture=ARCHITECTURES[architecture], d_sae=48)  # type: ignore[arg-type]
    dictionary = trained(cfg, space, rows)
    export_saelens(dictionary, space, tmp_path / "sae", METADATA)
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    agrees_with_saelens(dictionary, space, tmp_path / "sae", rows)

    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    assert theirs.cfg.metadata.hook_name == space.site.hook_name
    assert (theirs.cfg.metadata.model_name, theirs.cfg.metadata.context_size) == ("tiny", 32)
    assert theirs.cfg.metadata.hook_head_index is None and theirs.cfg.metadata.prepend_bos is True

    # And our own reader returns the same dictionary, in the coordinates of the site and the units of the space.
    again, metadata = load_saelens(tmp_path / "sae")
    assert metadata["tokens"] == 1000 and metadata["space"]["kind"] == kind and metadata["coordinates"] == "site"
    x = rows.activations[space.site.name]
    with torch.no_grad():
        assert torch.allclose(again.encode(x), theirs.encode(x), atol=1e-4)
        assert (again(x) - theirs(x)).norm() < 1e-5 * x.norm()
        assert type(again) is type(dictionary)
        if isinstance(dictionary, BatchTopKDictionary):
            assert isinstance(again, BatchTopKDictionary) and torch.equal(again.threshold, dictionary.threshold)
            assert isinstance(theirs, sae_lens.JumpReLUSAE) and (theirs.threshold == dictionary.threshold).all()
        if isinstance(dictionary, JumpReLUDictionary):
            assert dictionary.threshold.std() > 0.01 and torch.equal(theirs.threshold, dictionary.threshold)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize(("kind", "settings"), SPACES, ids=str)
def test_unfolding_undoes_the_export(kind: str, settings: dict[str, Any], architecture: str, tmp_path: Path) -> None:
    """The same features on the same rows in the space's own coordinates, and the very parameters that were trained, but
    for what no row can show and the free scale of a ReLU's features."""
    space, rows = synthetic(kind, **settings)
    cfg = DictionaryConfig(site=space.site.name, architecture=ARCHITECTURES[architecture], d_sae=48)  # type: ignore[arg-type]
    dictionary = trained(cfg, space, rows)
    export_saelens(dictionary, space, tmp_path / "sae", METADATA)
    folded, _ = load_saelens(tmp_path / "sae")
    again = unfold(folded, space)
    assert type(again) is type(dictionary) and again.unit_decoder and getattr(again, "k", 5) == 5
    norms = torch.ones(48, 1) if dictionary.unit_decoder else dictionary.W_dec.norm(dim=1, keepdim=True)
    with torch.no_grad():
        visible = space.project(dictionary.W_dec / norms)
        assert (again.W_dec - visible).norm() < 1e-5 * visible.norm()
        encoder = space.project(dictionary.encoder * norms)
        assert (again.encoder - encoder).norm() < 1e-5 * encoder.norm()
        assert (again.b_dec - space.project(dictionary.b_dec[None])[0]).norm() < 1e-4 * (1 + dictionary.b_dec.norm())
        z = space.read(rows)
        pre, pre_again = dictionary.pre_activations(z) * norms.T, again.pre_activations(z)
        assert (pre_again - pre).norm() < 1e-5 * pre.norm()
        threshold, again_threshold = thresholds(dictionary), thresholds(again)
        if threshold is not None:
            assert again_threshold is not None and torch.equal(again_threshold, threshold)
        x_hat, again_hat = space.lift(dictionary(z)), space.lift(again(z))
        close = ((again_hat - x_hat).norm(dim=1) / x_hat.norm(dim=1)) < 1e-4
        assert close.float().mean() > 0.98  # but where two features share the k-th place, or one is at its threshold
    for name, tensor in fold(again, space).tensors().items():  # and folding again gives the same file
        other = fold(dictionary, space).tensors()[name]
        assert (tensor - other).norm() < 1e-5 * (1 + other.norm()), name


def test_unfolding_needs_a_fixed_map_of_the_right_width() -> None:
    space, rows = synthetic("logit_update", ln="token")
    dictionary = trained(DictionaryConfig(site="mlp_out@2", architecture=TopKConfig(k=5), d_sae=48), space, rows, 1)
    with pytest.raises(ValueError, match="every token"):
        unfold(dictionary, space)
    narrow = build_dictionary(DictionaryConfig(site="mlp_out@2", d_sae=48, b_dec_init="zero"), 8, torch.Generator())
    with pytest.raises(ValueError, match="width 8"):
        unfold(narrow, synthetic("resid_update")[0])


def test_per_token_scale_stays_in_the_space_and_says_so(tmp_path: Path) -> None:
    space, rows = synthetic("logit_update", ln="token", centre="mean")
    dictionary = trained(DictionaryConfig(site="mlp_out@2", architecture=TopKConfig(k=5), d_sae=48), space, rows)
    export_saelens(dictionary, space, tmp_path, METADATA)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert metadata["coordinates"] == "space" and metadata["hook_name"] is None and "each token" in metadata["note"]
    assert metadata["site_hook_name"] == "blocks.2.hook_mlp_out"
    z = space.read(rows)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        assert torch.allclose(theirs(z), dictionary(z), atol=1e-4)
    for name, tensor in load_file(tmp_path / "sae_weights.safetensors").items():
        assert torch.equal(tensor, getattr(dictionary, name))


def test_an_export_over_an_old_one_replaces_it(tmp_path: Path) -> None:
    for d_sae in (48, 30):
        space, rows = synthetic("resid_update")
        cfg = DictionaryConfig(site="mlp_out@2", architecture=TopKConfig(k=5), d_sae=d_sae)
        export_saelens(trained(cfg, space, rows, 1), space, tmp_path, METADATA)
        assert load_saelens(tmp_path)[0].d_sae == d_sae


def real_rows(model: LanguageModel, tokens: Tensor, site: Site) -> Rows:
    with torch.no_grad():
        cache = model.bridge.run_with_cache(tokens, names_filter=[site.hook_name, "ln_final.hook_in"])[1]
    scale = FinalNorm.of(model).scale(cache["ln_final.hook_in"]).flatten()
    position = torch.arange(tokens.shape[1]).repeat(tokens.shape[0])
    rows = Rows({site.name: cache[site.hook_name].flatten(0, 1)}, tokens.flatten(), position, tokens.flatten(), scale)
    return rows[position >= 1]


def test_real_activations(shared: Path, tmp_path: Path) -> None:
    """8,192 rows of a trained model in the three spaces."""
    import gzip

    model = load_model(str(shared / "models" / "stories260K"))
    with gzip.open(shared / "data" / "tinystories.jsonl.gz", "rt") as file:
        text = [json.loads(line)["text"] for line, _ in zip(file, range(200), strict=False)]
    ids = [i for story in text for i in model.tokenizer(story)["input_ids"]]  # type: ignore[misc]
    tokens = torch.tensor(ids[: 65 * 128]).view(65, 128)
    for kind, name in (("mlp_acts", "mlp_acts@3"), ("resid_update", "mlp_out@3"), ("logit_update", "mlp_out@3")):
        site = resolve_site(model, name)
        rows = real_rows(model, tokens, site)[:8192]
        assert len(rows) == 8192
        space = build_space(SpaceConfig(kind=kind), site, model, rows)  # type: ignore[arg-type]
        cfg = DictionaryConfig(site=name, architecture=TopKConfig(k=16), d_sae=256)
        dictionary = trained(cfg, space, rows)
        export_saelens(dictionary, space, tmp_path / kind, METADATA)
        agrees_with_saelens(dictionary, space, tmp_path / kind, rows)


def saelens_trained_topk(rescale: bool) -> Any:
    cfg = sae_lens.TopKTrainingSAEConfig(d_in=8, d_sae=32, k=4, rescale_acts_by_decoder_norm=rescale)
    return sae_lens.TopKTrainingSAE(cfg), "save_inference_model"


def saelens_topk(rescale: bool) -> Any:
    return sae_lens.TopKSAE(
        sae_lens.TopKSAEConfig(d_in=8, d_sae=32, k=4, rescale_acts_by_decoder_norm=rescale)
    ), "save_model"


def saelens_standard(subtract: bool) -> Any:
    return sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(d_in=8, d_sae=32, apply_b_dec_to_input=subtract)
    ), "save_model"


def saelens_jumprelu(subtract: bool) -> Any:
    return sae_lens.JumpReLUSAE(
        sae_lens.JumpReLUSAEConfig(d_in=8, d_sae=32, apply_b_dec_to_input=subtract)
    ), "save_model"


def saelens_trained_jumprelu(training: bool) -> Any:
    """As it is saved for inference, and as a checkpoint of its training."""
    cfg = sae_lens.JumpReLUTrainingSAEConfig(d_in=8, d_sae=32)
    return sae_lens.JumpReLUTrainingSAE(cfg), "save_model" if training else "save_inference_model"


def saelens_trained_batchtopk(rescale: bool) -> Any:
    cfg = sae_lens.BatchTopKTrainingSAEConfig(d_in=8, d_sae=32, k=4, rescale_acts_by_decoder_norm=rescale)
    sae = sae_lens.BatchTopKTrainingSAE(cfg)
    sae.topk_threshold.fill_(0.4)
    return sae, "save_inference_model"


UNFOLDED = (saelens_standard, saelens_jumprelu, saelens_trained_jumprelu)
"""What SAELens saves with whatever decoder norms it has."""


@pytest.mark.parametrize("make", [saelens_trained_topk, saelens_topk, saelens_trained_batchtopk, *UNFOLDED])
@pytest.mark.parametrize("option", [True, False])
def test_what_saelens_writes_is_read(make: Any, option: bool, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    theirs, save = make(option)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    getattr(theirs, save)(str(tmp_path))
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    ours, metadata = load_saelens(tmp_path)
    kinds = {saelens_standard: ReLUDictionary, saelens_topk: TopKDictionary, saelens_trained_topk: TopKDictionary}
    assert isinstance(ours, kinds.get(make, JumpReLUDictionary))
    assert metadata["sae_lens_version"] and (metadata["d_in"], metadata["d_sae"]) == (8, 32)
    x = torch.randn(100, 8, generator=g)
    with torch.no_grad():
        f, f_theirs = ours.encode(x), theirs.encode(x)
        assert (f > 0).any() and ((f > 0) == (f_theirs > 0)).all()
        assert (
            f - f_theirs * (1 if isinstance(ours, TopKDictionary) else theirs.W_dec.norm(dim=-1))
        ).norm() < 1e-5 * f.norm()
        assert (ours(x) - theirs(x)).norm() < 1e-5 * x.norm()
    if make in UNFOLDED:
        assert (ours.W_dec.norm(dim=-1) - 1).abs().max() < 1e-5  # folded: activations have a unit
        unfolded = load_saelens(tmp_path, fold_decoder_norm=False)[0]
        with torch.no_grad():
            assert torch.allclose(unfolded.encode(x), f_theirs, atol=1e-5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    space, rows = synthetic("resid_update")
    cfg = DictionaryConfig(site="mlp_out@2", architecture=TopKConfig(k=5), d_sae=48)
    export_saelens(trained(cfg, space, rows, 1), space, tmp_path / "sae", METADATA)
    return tmp_path / "sae"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "gated"}, "'b_enc' is not expected"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' is not supported; expected one of standard, topk"),
        ({"architecture": "temporal"}, "'temporal' is not supported"),
        ({"architecture": "abstopk"}, "'abstopk' is not supported"),
        ({"architecture": ["topk"]}, "not supported"),
        ({"architecture": "batchtopk"}, "'topk_threshold' is missing"),
        ({"architecture": "transcoder"}, "'d_out' must be a positive integer"),
        ({"architecture": "transcoder", "d_out": 16}, "apply_b_dec_to_input = True"),
        ({"architecture": "jumprelu"}, "'threshold' is missing"),
        ({"d_in": "16"}, "'d_in' must be a positive integer"),
        ({"d_in": True}, "'d_in' must be a positive integer"),
        ({"d_in": 10**15}, "W_enc has shape"),
        ({"d_sae": 47}, "W_enc has shape"),
        ({"k": 0}, "'k' must be a positive integer"),
        ({"k": 49}, "larger than d_sae"),
        ({"k": None}, "'k' must be"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
        ({"activation_fn_str": "topk"}, "activation_fn_str = 'topk'"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input"),
        ({"metadata": []}, "'metadata' must be an object"),
    ],
    ids=str,
)
def test_foreign_configurations_are_refused(folder: Path, change: dict[str, Any], sentence: str) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**cfg, **change}))
    with pytest.raises(UserError, match=sentence) as error:
        load_saelens(folder)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_damaged_files_are_refused(folder: Path) -> None:
    cfg, weights = folder / "cfg.json", folder / "sae_weights.safetensors"
    good_cfg, good = cfg.read_bytes(), weights.read_bytes()
    tensors = load_file(weights)

    def refused(sentence: str) -> None:
        with pytest.raises(UserError, match=sentence) as error:
            load_saelens(folder)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")
        cfg.write_bytes(good_cfg)
        weights.write_bytes(good)
        load_saelens(folder)

    for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN nonsense"):
        cfg.write_bytes(text)
        refused("is not valid JSON")
    cfg.write_bytes(b"[1]")
    refused("must hold a JSON object")
    cfg.write_bytes(b" " * (17 << 20))
    refused("larger than 16 MiB")
    cfg.unlink()
    refused("Cannot read .*cfg.json")
    for text in (b"", good[:-1], good[:100], b"PK\x03\x04" + good, struct.pack("<Q", 2**62) + good[8:]):
        weights.write_bytes(text)
        refused("truncated or no safetensors file")
    weights.unlink()
    refused("Cannot read .*sae_weights.safetensors")
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}).encode()
    weights.write_bytes(struct.pack("<Q", len(header)) + header)
    refused("truncated or no safetensors file")
    for changed, sentence in (
        ({k: v for k, v in tensors.items() if k != "b_enc"}, "'b_enc' is missing"),
        ({**tensors, "threshold": torch.ones(48)}, "'threshold' is not expected"),
        ({**tensors, "b_dec": torch.full((16,), torch.nan)}, "finite floating-point"),
        ({**tensors, "b_dec": torch.ones(16, dtype=torch.int32)}, "finite floating-point"),
        ({**tensors, "b_dec": torch.ones(17)}, "b_dec has shape"),
    ):
        save_file(changed, weights)
        refused(sentence)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        load_saelens(tmp_path / "nowhere")


@pytest.fixture
def jumprelu_folder(tmp_path: Path) -> Path:
    space, rows = synthetic("resid_update")
    cfg = DictionaryConfig(site="mlp_out@2", architecture=BatchTopKConfig(k=5), d_sae=48)
    export_saelens(trained(cfg, space, rows, 5), space, tmp_path / "sae", METADATA)
    return tmp_path / "sae"


def test_damaged_thresholds_are_refused(jumprelu_folder: Path) -> None:
    weights = jumprelu_folder / "sae_weights.safetensors"
    tensors = load_file(weights)
    for threshold, sentence in (
        (torch.full((48,), torch.nan), "threshold holds something else"),
        (torch.ones(47), "threshold has shape"),
        (torch.ones(()), "threshold has shape"),
    ):
        save_file({**tensors, "threshold": threshold}, weights)
        with pytest.raises(UserError, match=sentence) as error:
            load_saelens(jumprelu_folder)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("said", [None, [], "batchtopk", {"kind": "batchtopk"}, {"k": 5}], ids=str)
@pytest.mark.parametrize("k", [None, 0, 49, 5.0, "5", True])
def test_what_a_file_says_of_its_training_decides_nothing(jumprelu_folder: Path, said: Any, k: Any) -> None:
    """It is a JumpReLU all the same, with the same activations."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=g)
    before, _ = load_saelens(jumprelu_folder)
    assert isinstance(before, BatchTopKDictionary) and before.k == 5
    path = jumprelu_folder / "cfg.json"
    cfg = json.loads(path.read_text())
    if isinstance(said, dict) and k is not None:
        said = {**said, "k": k}
    cfg["metadata"]["training_architecture"] = said
    path.write_text(json.dumps(cfg))
    after, _ = load_saelens(jumprelu_folder, fold_decoder_norm=False)
    assert isinstance(after, JumpReLUDictionary)
    assert torch.equal(after.encode(x), before.encode(x))
    cfg["metadata"]["training_architecture"] = {"kind": "batchtopk", "k": 5}
    path.write_text(json.dumps(cfg))
    weights = jumprelu_folder / "sae_weights.safetensors"
    save_file({**load_file(weights), "threshold": torch.arange(48.0)}, weights)
    assert isinstance(load_saelens(jumprelu_folder)[0], JumpReLUDictionary)
