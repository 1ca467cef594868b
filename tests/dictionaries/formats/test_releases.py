"""Releases in layouts of their own, against what SAELens makes of the very same files, under real names."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_tools.dictionaries.formats import hub
from sae_tools.dictionaries.formats.parts import KIND_OF, KINDS
from sae_tools.dictionaries.formats.read import read_dictionary
from sae_tools.dictionaries.formats.releases import (
    LAYOUTS,
    gemma_scope,
    gemma_scope_2,
    qwen_transcoders,
    state_dicts,
)
from tests.dictionaries.formats.examples import close, rows
from tests.dictionaries.formats.fake_hub import stand_in
from tests.dictionaries.formats.released import EXAMPLES, D, Example, F

pytest.importorskip("sae_lens", reason="SAELens is not installed")

from huggingface_hub.utils import EntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as theirs
from safetensors import safe_open

REGISTRY = hub._registry()
SAID = ("model_name", "hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out", "dataset_path", "context_size")


@pytest.fixture
def the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that both this package and SAELens take for the hub."""
    there = stand_in(tmp_path, monkeypatch)

    def download(repo_id: str, filename: str, *, subfolder: str = "", **_: Any) -> str:
        path = there / repo_id / subfolder / filename
        if not path.is_file():
            raise EntryNotFoundError.__new__(EntryNotFoundError)
        return str(path)

    def shapes(repository: str, filename: str) -> dict[str, list[int]]:
        with safe_open(there / repository / filename, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(theirs, "hf_hub_download", download)
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", shapes)
    monkeypatch.setattr(hub, "_registry", lambda: REGISTRY)
    return there


def by_saelens(example: Example) -> SAE[Any]:
    """As `SAE.from_pretrained` loads it, told that this one is small."""

    def smaller(**given: Any) -> Any:
        given["cfg_overrides"] = {**given["cfg_overrides"], "d_in": D, "d_sae": F}
        if example.loader == "gemma_2_transcoder":
            given["cfg_overrides"]["d_out"] = D
        return theirs.NAMED_PRETRAINED_SAE_LOADERS[example.loader](**given)

    found = SAE.from_pretrained_with_cfg_and_sparsity(example.release, example.sae_id, converter=smaller)  # type: ignore
    return found[0]


def answers(sae: SAE[Any], x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(features, output) of SAELens's, of rows that lie side by side again."""
    given = x.unflatten(-1, (heads, -1)) if heads > 1 else x
    with torch.no_grad():
        return sae.encode(given), sae(given).reshape(len(x), -1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.loader}-{example.path}")
def test_saelens_makes_the_same_of_the_same_files(example: Example, the_hub: Path) -> None:
    example.write(the_hub / example.repository / example.path)
    sae, name = by_saelens(example), f"saelens:{example.release}/{example.sae_id}"
    x = rows(D)
    features, output = answers(sae, x, example.heads)
    assert 0.02 < (features > 0).float().mean() < 0.9 and (features > 0).any(1).float().mean() > 0.9
    for fold in (False, None):
        read, metadata = read_dictionary(name, fold_decoder_norm=fold)
        norms = sae.W_dec.detach().norm(dim=-1)
        folded = fold is None and KINDS[KIND_OF[type(read)]].rescales
        with torch.no_grad():
            assert close(read.encode(x), features * norms if folded else features)
            assert ((read.encode(x) > 0) == (features > 0)).float().mean() > 0.9999
            assert close(read(x), output)
        assert torch.allclose(read.decoder_norms, torch.ones(F)) == folded
        about = sae.cfg.metadata
        for key in SAID:
            theirs_say = getattr(about, key, None)
            assert metadata.get(key) == theirs_say or (key == "context_size" and key not in metadata), key
        assert metadata["format"] == LAYOUTS[example.loader].format and metadata["source"] == name
        assert metadata["architecture"] == sae.cfg.architecture() and read.d_out == getattr(sae.cfg, "d_out", D)
        assert ("decoder rows have norm 1" in metadata["activation_unit"]) == folded


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.loader}-{example.path}")
def test_files_that_somebody_has_need_no_registry(example: Example, the_hub: Path) -> None:
    at = the_hub / example.repository / example.path
    example.write(at)
    scale = None if "llama_scope" in example.loader else 1  # the files' own
    x = rows(D)
    by_name, said = read_dictionary(f"saelens:{example.release}/{example.sae_id}")
    on_hub, there = read_dictionary(f"hub:{example.repository}/{example.path}")
    local, here = read_dictionary(at)
    with torch.no_grad():
        assert torch.equal(on_hub(x), local(x)) and torch.equal(by_name(x), local(x)) == (scale == 1)
    for key in (*SAID, "architecture", "format"):
        assert said.get(key) == there.get(key) == here.get(key), key


def test_every_name_in_the_registry_means_what_saelens_takes_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are told by names alone, all of them."""

    def missing(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError.__new__(EntryNotFoundError)

    monkeypatch.setattr(theirs, "hf_hub_download", missing)
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [D, F], "w_dec": [F, D]})
    ours = {
        "gemma_2": gemma_scope.about,
        "gemma_2_transcoder": gemma_scope.about,
        "gemma_3": lambda name: gemma_scope_2.about(name, {}),
        "qwen_scope": state_dicts.about_qwen,
        "goodfire": state_dicts.about_goodfire,
        "deepseek_r1": state_dicts.about_deepseek,
    }
    count = 0
    for release in REGISTRY.values():
        about = ours.get(release.get("conversion_func"))
        if about is None:
            continue
        config = theirs.NAMED_PRETRAINED_SAE_CONFIG_GETTERS[release["conversion_func"]]
        for sae in release["saes"]:
            repository, path = release["repo_id"], str(sae["path"])
            cfg, said = config(repository, path, "cpu", False, None), about(f"{repository}/{path}")
            for key in ("model_name", "hook_name", "hook_name_out"):
                assert said.get(key) == cfg.get(key), (repository, path, key)
            is_skip = said["architecture"] == "jumprelu_transcoder" and path.endswith("_affine")  # its tensors tell
            assert cfg["architecture"] == ("jumprelu_skip_transcoder" if is_skip else said["architecture"])
            if "k" in (cfg.get("activation_fn_kwargs") or {}):
                found = state_dicts.QWEN_REPOSITORY.search(f"{repository}/{path}")
                assert found is not None and int(found[2]) == cfg["activation_fn_kwargs"]["k"]
            count += 1
    assert count > 12_000


def test_transcoders_of_qwen_by_their_names() -> None:
    for release in REGISTRY.values():
        if release.get("conversion_func") == "mwhanna_transcoder":
            said = qwen_transcoders.about(f"{release['repo_id']}/layer_7.safetensors", None)
            size = re.findall(r"qwen3-([\d.]+)b", release["repo_id"])
            assert said["model_name"] == f"Qwen/Qwen3-{size[0]}B" and said["hook_name"] == "blocks.7.mlp.hook_in"


def test_how_many_of_the_registrys_releases_are_read() -> None:
    """As `hub.py` and the README say it."""
    loaders = [release.get("conversion_func") for release in REGISTRY.values()]
    read, all_of_them = sum(loader in hub.FILES for loader in loaders), len(loaders)
    if version("sae_lens") != "6.54.12":
        pytest.skip(f"what was counted is the registry of SAELens 6.54.12, and {version('sae_lens')} is installed")
    assert (read, all_of_them) == (167, 170)
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert f"{read} of the {all_of_them} releases" in " ".join(readme.split())
    assert f"{all_of_them} releases that sae_lens 6.54.12 lists, {read} are" in " ".join(str(hub.__doc__).split())
