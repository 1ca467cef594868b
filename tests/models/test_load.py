from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from sae_tools.errors import UserError
from sae_tools.models import locate
from sae_tools.models.load import LanguageModel, load_model
from sae_tools.models.shuffle import shuffled_weights
from tests.tiny_models import BOS, EOS, KINDS, PAD, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("gpt2"), tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Online as far as the libraries know, but any attempt to connect fails the test that was not to make one."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fails(name: object, message: str, **settings: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(name, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_raw_frozen_and_without_network(no_network: None, kind: str):
    model = load_model(tiny_model(kind))
    assert (model.n_layers, model.d_model, model.d_vocab, model.n_ctx) == (3, 32, 264, 64)
    assert model.d_mlp == (128 if kind == "gpt2" else 64)
    assert (model.kind, model.name, model.folder) == ("folder", str(tiny_model(kind)), tiny_model(kind))
    assert model.bos_token_id == BOS and model.special_token_ids == (BOS, EOS, PAD)
    assert not model.bridge.training
    assert not any(p.requires_grad for p in model.bridge.parameters())
    stored = load_file(tiny_model(kind) / "model.safetensors")
    name = next(name for name in stored if name.endswith(("wte.weight", "embed_in.weight", "embed_tokens.weight")))
    assert torch.equal(model.bridge.W_E, stored[name])


def test_a_folder_may_be_given_relative_and_wins_over_the_hub(
    folder: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
):
    folder.rename(folder.parent / "gpt2")
    monkeypatch.chdir(folder.parent)
    assert load_model("gpt2").kind == "folder"


@pytest.mark.parametrize("kind", ["gpt2", "llama-tied"])
def test_half_precision_on_disk_comes_up_as_asked(kind: str):
    stored = tiny_model(kind, dtype="float16")
    model = load_model(stored)
    assert {p.dtype for p in model.bridge.parameters()} == {torch.float32} and model.dtype == torch.float32
    weights = load_file(stored / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    name = next(name for name in weights if name.endswith(("wte.weight", "embed_tokens.weight")))
    assert torch.equal(model.bridge.W_E, weights[name].float())
    assert model.bridge(torch.arange(8)[None]).dtype == torch.float32
    half = load_model(stored, dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.describe()["dtype"] == "bfloat16"


def test_a_bridge_in_memory_is_taken_as_it_is(no_network: None):
    bridge = TransformerBridge.boot_transformers(str(tiny_model("gpt2")), device="cpu")
    model = load_model(bridge)
    assert model.bridge is bridge and model.kind == "memory" and model.folder is None
    assert model.bos_token_id == BOS
    assert not any(p.requires_grad for p in bridge.parameters())
    assert load_model(model) is model
    own = load_model(tiny_model("gpt2")).tokenizer
    assert load_model(bridge, tokenizer=own).tokenizer is own


def test_a_bridge_with_processed_weights_is_refused():
    bridge = TransformerBridge.boot_transformers(str(tiny_model("gpt2")), device="cpu")
    bridge.enable_compatibility_mode(no_processing=True)
    load_model(bridge)
    bridge = TransformerBridge.boot_transformers(str(tiny_model("gpt2")), device="cpu")
    bridge.enable_compatibility_mode()
    fails(bridge, "weights have been processed")


def test_our_tokenizer_is_not_the_bridges(gpt2: LanguageModel):
    assert gpt2.tokenizer is not None and gpt2.tokenizer is not gpt2.bridge.tokenizer
    assert gpt2.tokenizer("ab")["input_ids"] == [64, 65]


def test_a_folder_without_tokenizer_serves_tokenised_data(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model = load_model(folder)
    assert model.tokenizer is None and model.tokenizer_fingerprint is None
    assert model.bos_token_id == BOS and model.special_token_ids == (BOS,)
    assert model.bridge(torch.arange(8)[None]).shape == (1, 8, 264)


def test_bos_falls_back_to_eos(folder: Path):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("bos_token")
    path.write_text(json.dumps(settings))
    model = load_model(folder)
    assert model.bos_token_id == EOS
    assert model.special_token_ids == (BOS, EOS, PAD)  # tokenizer.json still marks the first as special


def test_tokens_marked_special_count_whatever_their_role(folder: Path):
    model = load_model(folder)
    assert model.tokenizer is not None
    model.tokenizer.add_tokens(["<turn>"], special_tokens=True)
    model.tokenizer.add_tokens(["word"])
    assert model.special_token_ids == (BOS, EOS, PAD, 259)


def test_the_unknown_token_is_text(shared: Path):
    model = load_model(shared / "models" / "stories260K")
    assert model.tokenizer is not None and model.tokenizer.unk_token_id == 0
    assert (model.bos_token_id, model.special_token_ids) == (1, (1, 2))


def test_description_tells_models_apart(folder: Path):
    first, again = load_model(tiny_model("gpt2")).describe(), load_model(folder).describe()
    assert json.loads(json.dumps(first)) == first
    assert {**again, "name": first["name"]} == first
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder).describe()["weights_fingerprint"] != first["weights_fingerprint"]


def test_tokenizer_fingerprint_sees_merges_but_not_padding(folder: Path):
    model = load_model(folder)
    before = model.tokenizer_fingerprint
    model.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)  # type: ignore[misc]
    assert LanguageModel(model.bridge, model.tokenizer, "x", "memory").tokenizer_fingerprint == before
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    assert load_model(folder).tokenizer_fingerprint != before


def unlink_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def drop_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def change(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unlink_config, "has no config.json"),
        (truncate, "truncated or no safetensors"),
        (huge_header, "truncated or no safetensors"),
        (drop_a_tensor, "lack 1 of the tensors .* transformer.h.1.mlp.c_fc.weight"),
        (pickle_instead, "no .safetensors file"),
        (write("config.json", "{"), "config.json .* cannot be used"),
        (write("config.json", "[]"), "config.json .* cannot be used"),
        (write("tokenizer.json", "{"), "The tokenizer in .* cannot be read"),
        (change(model_type="no-such"), "config.json .* `no-such`"),
        (change(model_type="no-such", auto_map={"AutoConfig": "x.X"}), "config.json .* custom code"),
        (change(n_embd="wide"), "config.json .*'n_embd'"),
        (change(n_embd=64), "other shapes than its config.json"),
        (change(vocab_size=10**11), "other shapes than its config.json"),
        (change(n_layer=5), "lack 24 of the tensors"),
        (change(n_layer=-1), "has no layers"),
    ],
)
def test_a_damaged_folder_is_named_in_one_sentence(folder: Path, damage: Callable[[Path], object], message: str):
    damage(folder)
    fails(folder, message)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("./no/such", {}, "folder no/such does not exist"),
        ("/no/such", {}, "folder /no/such does not exist"),
        (Path("no-such"), {}, "folder no-such does not exist"),
        ("not a name", {}, "folder not a name does not exist"),
        (__file__, {}, "is a file"),
        (3, {}, "int was given"),
        ("any", {"dtype": "half"}, "model.dtype is 'half', but must be one of float32, bfloat16, float16"),
        ("any", {"device": "gpu"}, "found 'gpu'"),
        ("any", {"device": "cuda:99"}, "cuda:99 was asked for"),
    ],
)
def test_wrong_settings(name: object, settings: dict[str, object], message: str):
    fails(name, message, **settings)


@pytest.mark.parametrize("name", ["no-such-model", "owner/no-such-model"])
def test_a_hub_name_without_network_fails_at_once(no_network: None, name: str):
    start = time.perf_counter()
    fails(name, f"no folder {name} here, and the hub.* cannot be reached")
    assert time.perf_counter() - start < 5


def test_without_the_bundled_model_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(locate, "BUNDLED", tmp_path)
    fails("bundled", "bundled model is not installed")
    monkeypatch.setattr(locate, "BUNDLED", tiny_model("gpt2"))
    assert load_model("bundled").kind == "bundled"


def test_a_hub_model_is_downloaded_without_pickles(monkeypatch: pytest.MonkeyPatch):
    """The hub stands in as a folder: what is asked of it is what matters here."""
    asked: dict[str, object] = {}

    def download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        return str(tiny_model("gpt2"))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = load_model("owner/model", revision="step1000")
    assert (model.kind, model.name, model.revision) == ("hub", "owner/model", "step1000")
    assert asked["name"] == "owner/model" and asked["revision"] == "step1000" and asked["local_files_only"] is False
    assert not any(str(pattern).endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]


def test_a_hooked_transformer_is_told_apart():
    with pytest.raises(UserError, match="boot the model with TransformerBridge.boot_transformers"):
        load_model(type("HookedTransformer", (), {})())


@pytest.mark.parametrize("kind", ["gpt2", "llama-tied"])
def test_shuffled_weights_are_those_of_the_control(kind: str):
    """Loaded so, and shuffled in place as sae-eval's control does it, it is one model."""
    tokens = torch.arange(6, 26).view(2, 10)
    learnt, shuffled = load_model(tiny_model(kind)), load_model(tiny_model(kind), shuffle_weights=3)
    with torch.no_grad():
        found = shuffled.bridge(tokens, return_type="logits")
        clean = learnt.bridge(tokens, return_type="logits")
        with shuffled_weights(learnt, 3):
            expected = learnt.bridge.original_model(tokens).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, clean, atol=1e-2)
    assert shuffled.describe()["shuffle_weights"] == 3 and "shuffle_weights" not in learnt.describe()
    assert shuffled.describe()["weights_fingerprint"] != learnt.describe()["weights_fingerprint"]


def test_a_model_in_memory_is_not_shuffled():
    model = load_model(tiny_model("gpt2"))
    for given in (model, model.bridge):
        with pytest.raises(UserError, match="shuffle_weights is for a model that is loaded by name"):
            load_model(given, shuffle_weights=0)
