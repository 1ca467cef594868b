"""Runs and SAEs as users give them: what is opened, with which model, text and rows, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_tools.analysis.metadata import same_text
from sae_tools.analysis.origins import find_origins, name_origins
from sae_tools.analysis.run_with_dictionary import run_with_dictionary
from sae_tools.analysis.sources import Group, Source, open_sources
from sae_tools.config import DataConfig, ModelConfig, RowsConfig
from sae_tools.config_report import ReportConfig
from sae_tools.dictionaries.formats.saelens import load_saelens
from sae_tools.dictionaries.formats.write import write_dictionary
from sae_tools.errors import UserError
from sae_tools.models.load import load_model
from sae_tools.runs.tensors import load_tensors
from sae_tools.training.job import open_model
from sae_tools.training.run import run_job
from tests.dictionaries.formats import released
from tests.dictionaries.formats.examples import example
from tests.jobs import job_config, text_corpus
from tests.tiny_models import WIDTH, tiny_model

CFG = ReportConfig(device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_job(job_config(tmp_path_factory.mktemp("job"), tracking={"density_windows": 2})).run.path


def all_sources(groups: list[Group]) -> list[Source]:
    return [source for group in groups for source in group.sources]


def saelens_folder(path: Path, d_in: int = WIDTH, **metadata: Any) -> Path:
    """As SAELens writes a standard SAE; metadata of None is left out."""
    path.mkdir(parents=True)
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (d_in, 24), "b_enc": (24,), "W_dec": (24, d_in), "b_dec": (d_in,)}
    save_file({k: torch.randn(s, generator=g) for k, s in shapes.items()}, path / "sae_weights.safetensors")
    said = {
        "model_name": str(tiny_model("gpt2")),
        "hook_name": "blocks.1.hook_resid_post",
        "hook_head_index": None,
        "context_size": 48,
        "prepend_bos": False,
        "dataset_path": "python-stdlib",
        **metadata,
    }
    cfg = {
        "architecture": "standard",
        "d_in": d_in,
        "d_sae": 24,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {key: value for key, value in said.items() if value is not None},
    }
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def test_a_run_gives_every_dictionary_at_its_newest_checkpoint(run: Path) -> None:
    (group,) = open_sources([run], CFG)
    assert [source.id for source in group.sources] == ["acts", "update", "logits", "relu"]
    assert (
        group.model.name == str(tiny_model("gpt2")) and group.data.context_length == 32 and group.rows == RowsConfig()
    )
    for source in group.sources:
        assert source.run == run and source.tokens == 24 * 128 and source.path.name == str(24 * 128)
        assert source.config is not None and source.config.name == "job" and source.subject.name == source.id
        # In its own space, with the parameters that training had (free decoders rescaled to norm 1).
        trained, _ = load_tensors(source.path / "trainer.safetensors")
        assert source.subject.space.kind == source.config.dictionaries[source.id].space.kind
        for name in ("encoder", "b_enc", "b_dec"):
            mine = getattr(source.subject.dictionary, name)
            off = (mine - trained[f"parameter.{name}"]).abs().max()
            assert off < 1e-4, (source.id, name, off)
        assert (source.subject.dictionary.W_dec.norm(dim=1) - 1).abs().max() < 1e-4


def test_a_checkpoint_that_one_dictionary_lacks_is_passed_over(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "job"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "relu" / "checkpoints" / "3072")
    sources = all_sources(open_sources([copy], CFG))
    assert len({source.tokens for source in sources}) == 1 and 0 < (sources[0].tokens or 0) < 3072
    shutil.rmtree(copy / "relu" / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint of all its dictionaries"):
        open_sources([copy], CFG)


def test_what_can_share_a_corpus_is_one_group(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    given = config.read_text()
    config.write_text(given.replace("shuffle_characters: 20000", "shuffle_characters: 30000"))  # not for held-out text
    checkpoint = run / "acts" / "checkpoints" / "0"
    (group,) = open_sources([run, copy, checkpoint], CFG)
    names = [source.id for source in group.sources]
    assert names == [f"{r}--{d}" for r in ("job", "other") for d in ("acts", "update", "logits", "relu")] + [
        "job--acts--0"
    ]
    config.write_text(given.replace("context_length: 32", "context_length: 16"))
    first, second = open_sources([run, copy], CFG)
    assert first.model is second.model and second.data.context_length == 16
    assert [s.id for s in second.sources] == ["other--acts", "other--update", "other--logits", "other--relu"]


def test_runs_of_one_name_in_different_folders(run: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copytree(run, tmp_path / folder / "job")) for folder in ("one", "two")]
    origins = find_origins(paths)
    names = [origin.dictionary for origin in origins[: len(origins) // 2]]
    assert name_origins(origins) == [f"{job}--{name}" for job in ("job", "job-2") for name in names]


def test_a_checkpoint_of_a_run(run: Path) -> None:
    ((source,),) = [group.sources for group in open_sources([run / "logits" / "checkpoints" / "3072"], CFG)]
    assert (source.id, source.run, source.tokens) == ("logits", run.resolve(), 3072)
    assert source.subject.space.kind == "logit_update" and source.config is not None


def test_an_export_without_its_run(run: Path, tmp_path: Path) -> None:
    """The two files that SAELens needs, and with the space beside them."""
    origin = run / "logits" / "checkpoints" / "3072"
    folder = tmp_path / "mailed export!"
    folder.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        shutil.copy(origin / name, folder)
    named = CFG.model_copy(update={"data": DataConfig(source="python-stdlib")})
    (group,) = open_sources([folder], named)
    (source,) = group.sources
    assert (source.id, source.run, source.config) == ("mailed_export_", None, None)
    assert (group.data.context_length, group.data.bos, group.rows.skip_positions) == (32, "context", 1)
    assert (source.subject.space.kind, source.subject.space.matrix) == ("resid_update", None)
    plain = source.subject.dictionary
    shutil.copy(origin / "space.safetensors", folder)
    (source,) = all_sources(open_sources([folder], named))
    assert source.subject.space.kind == "logit_update"
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = source.subject.dictionary.encode(source.subject.space.forward(x))
        assert torch.allclose(own, plain.encode(x), atol=1e-4) and own.sum() > 0


def test_a_run_on_shuffled_weights_is_opened_on_them(tmp_path: Path) -> None:
    """Also by a checkpoint alone, whose metadata has the seed."""
    path = run_job(job_config(tmp_path, model={"name": str(tiny_model("gpt2")), "shuffle_weights": 5})).run.path
    run = load_model(tiny_model("gpt2"), shuffle_weights=5).describe()
    checkpoint = next((path / "update" / "checkpoints").iterdir())
    alone = Path(shutil.copytree(checkpoint, tmp_path / "alone"))
    for given in (path, alone):
        (group,) = open_sources([given], CFG.model_copy(update={"data": DataConfig(source="python-stdlib")}))
        assert group.model.describe() == run, given
    named = CFG.model_copy(update={"data": DataConfig(source="python-stdlib")})
    copied = ModelConfig(name=str(shutil.copytree(tiny_model("gpt2"), tmp_path / "copied")))
    for given in (path, alone):  # the model lies elsewhere, and is shuffled there
        (group,) = open_sources([given], named.model_copy(update={"model": copied}))
        assert group.model.describe()["weights_fingerprint"] == run["weights_fingerprint"]
        assert group.model.title == f"{copied.name} (weights shuffled, seed 5)"
    learnt = ModelConfig(name=copied.name, shuffle_weights=None)
    (group,) = open_sources([alone], named.model_copy(update={"model": learnt}))
    assert group.model.title == copied.name
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(UserError, match="are not those that it was trained on"):
            open_sources([path], CFG, load_model(tiny_model("gpt2"), dtype=dtype))


def test_a_model_in_memory_is_shuffled_as_the_job_says(tmp_path: Path) -> None:
    cfg = job_config(tmp_path, model={"name": str(tiny_model("gpt2")), "shuffle_weights": 5})
    for seed in (None, 4):
        with pytest.raises(UserError, match="model.shuffle_weights is 5, but the weights of the model in memory"):
            run_job(cfg, model=load_model(tiny_model("gpt2"), shuffle_weights=seed))
    model = load_model(tiny_model("gpt2"), shuffle_weights=5)
    assert open_model(cfg, model)[1] is model


def test_a_folder_of_saelens(tmp_path: Path) -> None:
    path = saelens_folder(tmp_path / "sae", tokens=5)
    (group,) = open_sources([path], CFG)
    (source,) = group.sources
    assert (source.id, source.tokens, source.metadata["context_size"]) == ("sae", 5, 48)
    assert (group.data.source, group.data.context_length, group.data.bos) == ("python-stdlib", 48, "none")
    subject = source.subject
    assert (subject.site.name, subject.space.kind, subject.space.matrix) == ("resid_post@1", "resid", None)
    x = torch.randn(20, WIDTH)
    assert torch.equal(subject.space.forward(x), x) and torch.equal(subject.space.lift(x), x)
    assert (subject.dictionary.W_dec.norm(dim=1) - 1).abs().max() < 1e-5


def test_files_of_releases(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-mlp" / "layer_1" / "width_16k" / "average_l0_7"
    released.gemma_scope(folder)
    for path in (folder, folder / "params.npz"):
        (origin,) = find_origins([path])
        assert origin.path == folder and name_origins([origin]) == ["average_l0_7"]
    with pytest.raises(UserError, match="is given twice"):
        find_origins([folder, folder / "params.npz"])
    layers = tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_50"
    released.QWEN(layers / "layer4.sae.pt")
    assert [origin.path for origin in find_origins([layers / "layer4.sae.pt"])] == [layers / "layer4.sae.pt"]
    released.qwen_transcoder(tmp_path / "mw" / "layer_3.safetensors")  # with a config.yaml
    for folder, name in ((layers, "layer4.sae.pt"), (tmp_path / "mw", "layer_3.safetensors")):
        with pytest.raises(UserError, match=f"holds 1 of a release's files; name one, such as .*{name}"):
            find_origins([folder])


def test_by_saelens_itself(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed")
    cfg = sae_lens.TopKSAEConfig(d_in=WIDTH, d_sae=32, k=4)
    cfg.metadata = sae_lens.saes.sae.SAEMetadata(
        model_name=str(tiny_model("llama")), hook_name="blocks.2.hook_mlp_out", context_size=32, prepend_bos=True
    )
    sae_lens.TopKSAE(cfg).save_model(str(tmp_path / "theirs"))
    (group,) = open_sources([tmp_path / "theirs"], CFG)
    assert group.sources[0].subject.site.name == "mlp_out@2" and group.model.name == str(tiny_model("llama"))
    assert (group.data.source, group.data.context_length) == ("python-stdlib", 32)


def test_settings_win_one_by_one(tmp_path: Path, run: Path) -> None:
    text = str(text_corpus(tmp_path))
    path = saelens_folder(tmp_path / "sae", model_name="gpt2-small", dataset_path="someone/webtext")
    cfg = CFG.model_copy(
        update={
            "model": ModelConfig(name=str(tiny_model("llama"))),
            "data": DataConfig(source=text),
            "rows": RowsConfig(skip_positions=3),
            "site": "mlp_out@0",
        }
    )
    (group,) = open_sources([path], cfg)
    assert group.model.name == str(tiny_model("llama")) and group.sources[0].subject.site.name == "mlp_out@0"
    assert (group.data.source, group.data.context_length) == (text, 48)
    assert group.rows == RowsConfig(skip_positions=3)
    # Beside an SAE, a run keeps its own; alone, the settings are for it.
    both = open_sources([path, run], cfg)
    assert [len(group.sources) for group in both] == [1, 4] and both[1].rows == RowsConfig()
    (alone,) = open_sources([run], CFG.model_copy(update={"data": DataConfig(source=text, context_length=20)}))
    assert (alone.data.source, alone.data.context_length, alone.data.heldout) == (text, 20, 0.2)


def test_a_model_in_memory_is_for_all(tmp_path: Path) -> None:
    model = load_model(str(tiny_model("gpt2")))
    path = saelens_folder(tmp_path / "sae", model_name="nobody/knows", context_size=None, prepend_bos=None)
    (group,) = open_sources([path], CFG, model)
    assert group.model is model and (group.data.context_length, group.data.bos) == (model.n_ctx, "context")


def test_paths_relative_to_the_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_model("gpt2"), tmp_path / "models" / "mine")
    path = saelens_folder(tmp_path / "runs" / "sae", model_name="models/mine")
    for place in (tmp_path, tmp_path / "models"):
        monkeypatch.chdir(place)
        (group,) = open_sources([path], CFG)
        assert group.model.folder is not None and group.model.folder.resolve() == (tmp_path / "models" / "mine")


@pytest.mark.parametrize("name", ["absolute", "../corpus.jsonl", "link.jsonl"])
def test_an_sae_does_not_choose_which_of_the_user_s_files_are_shown(tmp_path: Path, name: str) -> None:
    outside = text_corpus(tmp_path)
    path = saelens_folder(tmp_path / "sae", dataset_path=str(outside) if name == "absolute" else name)
    (path / "link.jsonl").symlink_to(outside)
    with pytest.raises(UserError, match="not in the SAE's own folder, and nothing else is read.*data.source="):
        open_sources([path], CFG)
    (group,) = open_sources([path], CFG.model_copy(update={"data": DataConfig(source=str(outside))}))
    assert group.data.source == str(outside)


def test_a_text_in_the_sae_s_own_folder(tmp_path: Path) -> None:
    path = saelens_folder(tmp_path / "sae", dataset_path="corpus.jsonl")
    text_corpus(path)
    (group,) = open_sources([path], CFG)
    assert Path(str(group.data.source)) == path / "corpus.jsonl"


def test_a_stream_whose_mean_was_taken_off(tmp_path: Path) -> None:
    """`center_writing_weights`: TransformerLens takes the mean over channels off the residual stream."""
    path = saelens_folder(tmp_path / "sae", model_from_pretrained_kwargs={"center_writing_weights": True})
    space = all_sources(open_sources([path], CFG))[0].subject.space
    x = torch.randn(5, WIDTH) + 3
    assert torch.allclose(space.forward(x), x - x.mean(1, keepdim=True), atol=1e-5)
    assert torch.allclose(space.lift(space.forward(x), x=x), x, atol=1e-5)
    other = saelens_folder(
        tmp_path / "llama",
        model_name=str(tiny_model("llama")),
        model_from_pretrained_kwargs={"center_writing_weights": True},
    )
    assert all_sources(open_sources([other], CFG))[0].subject.space.matrix is None  # RMSNorm: nothing to take off


def test_an_old_flat_configuration(tmp_path: Path) -> None:
    path = saelens_folder(tmp_path / "sae")
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps({**cfg.pop("metadata"), **cfg}))
    assert load_saelens(path)[1]["hook_name"] == "blocks.1.hook_resid_post"
    assert all_sources(open_sources([path], CFG))[0].subject.site.name == "resid_post@1"


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"model_name": None}, "names no model; name it: model.name=FOLDER"),
        ({"model_name": "gpt2-small"}, "'gpt2-small' is no folder on this machine.*model.name=FOLDER"),
        (
            {"dataset_path": "a/webtext"},
            "'a/webtext' is not in the SAE's own folder.*data.source=python-stdlib.*hub:a/webtext",
        ),
        ({"dataset_path": "hub:a/webtext"}, "data.source=hub:a/webtext"),
        ({"dataset_path": ["python-stdlib", 3]}, "not in the SAE's own folder"),
        ({"dataset_path": []}, "not in the SAE's own folder"),
        ({"hook_name": None}, "names no site.*site=mlp_out@3"),
        ({"hook_name": "blocks.7.hook_resid_post"}, "no site.*name the right one, such as site='mlp_out@3'"),
        ({"hook_head_index": 2}, "one attention head"),
        ({"hook_name": "blocks.1.mlp.hook_post"}, "d_in = 32, but mlp_acts@1 of .* is 128 wide.*site=.*model.name"),
        ({"context_size": "long"}, "metadata gives 'long' for data.context_length"),
        ({"context_size": 1}, "metadata gives '1' for data.context_length; set data.context_length yourself"),
        ({"skip_positions": -1}, "rows.skip_positions"),
    ],
    ids=str,
)
def test_what_the_metadata_leaves_to_the_user(metadata: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = saelens_folder(tmp_path / "sae", **metadata)
    with pytest.raises(UserError, match=sentence) as error:
        open_sources([path], CFG)
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and str(path) in str(error.value)


def test_all_that_is_unsaid_is_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before any model is loaded, also that of another SAE."""
    monkeypatch.setattr("sae_tools.analysis.sources.load_configured", lambda *args, **kwargs: pytest.fail("loaded"))
    well = saelens_folder(tmp_path / "well")
    bare = saelens_folder(tmp_path / "bare", **dict.fromkeys(("model_name", "hook_name", "dataset_path")))
    with pytest.raises(UserError) as error:
        open_sources([well, bare], CFG)
    assert str(error.value) == (
        f"{bare}: its metadata names no model and no site; name them: model.name=FOLDER; site=mlp_out@3 or another."
    )
    away = saelens_folder(tmp_path / "away", model_name="gpt2-small", hook_name=None, dataset_path="a/webtext")
    with pytest.raises(UserError) as error:
        open_sources([well, away], CFG)
    assert str(error.value) == (
        f"{away}: its metadata names no site; its model 'gpt2-small' is no folder on this machine and its text "
        f"'a/webtext' is not in the SAE's own folder, and nothing else is read or fetched unasked; name them: "
        f"model.name=FOLDER or its name on the hub; site=mlp_out@3 or another; data.source=python-stdlib, a file or "
        f"folder, or data.source=hub:a/webtext."
    )


def test_how_much_of_a_text_is_read(tmp_path: Path) -> None:
    """All of a text of the user's own; the usual held-out part of one that the SAE may have been trained on."""
    text = str(text_corpus(tmp_path))

    def heldout(path: Path, data: DataConfig | None) -> float:
        (group,) = open_sources([path], CFG.model_copy(update={"data": data}))
        return group.data.heldout

    other, same = saelens_folder(tmp_path / "other"), saelens_folder(tmp_path / "same", dataset_path="corpus.jsonl")
    own = str(text_corpus(same))
    usual = DataConfig().heldout
    assert heldout(other, DataConfig(source=text)) == heldout(other, DataConfig(source=[text])) == 1.0
    assert heldout(other, DataConfig(source=text, heldout=0.3)) == 0.3
    assert heldout(other, None) == heldout(other, DataConfig(source="python-stdlib")) == usual
    assert heldout(other, DataConfig(source=["python-stdlib", text])) == usual
    told = saelens_folder(tmp_path / "told", dataset_path=text)
    assert heldout(told, DataConfig(source=text)) == usual  # although only the user can have it read
    assert heldout(same, None) == heldout(same, DataConfig(source=own)) == usual


def test_a_text_that_nobody_named_is_said(tmp_path: Path, run: Path) -> None:
    silent, telling = saelens_folder(tmp_path / "silent", dataset_path=None), saelens_folder(tmp_path / "telling")
    said = {source.id: source.notes for source in all_sources(open_sources([silent, telling, run], CFG))}
    (note,) = said.pop("silent")
    assert note == f"{silent}: its metadata names no text, so python-stdlib is read; data.source= names another."
    assert set(said.values()) == {()}
    named = CFG.model_copy(update={"data": DataConfig(source=str(text_corpus(tmp_path)))})
    assert all_sources(open_sources([silent], named))[0].notes == ()


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    def refused(paths: list[Path], sentence: str, cfg: ReportConfig = CFG) -> None:
        with pytest.raises(UserError, match=sentence) as error:
            open_sources(paths, cfg)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")

    refused([], "found none")
    refused([tmp_path / "nowhere"], "nowhere does not exist")
    for place in (run / "acts", run / "acts" / "checkpoints"):
        newest = run / "acts" / "checkpoints" / "3072"
        refused([place], f"{place} holds all checkpoints .* the newest, {newest}, or the run, {run}")
    refused([tmp_path], "neither a run .* nor an SAE")
    refused([run, run], "given twice")
    refused([run, run / "acts" / "checkpoints" / "3072"], "given twice")
    refused([run], "site=mlp_out@1 is for an SAE that is no run", CFG.model_copy(update={"site": "mlp_out@1"}))
    missing = CFG.model_copy(update={"model": ModelConfig(name=str(tmp_path / "gone"))})
    refused([run], "does not exist; name another with model.name=FOLDER", missing)
    wrong = CFG.model_copy(update={"model": ModelConfig(name=str(tiny_model("llama")))})
    refused([run], "site mlp_acts@1 is 128 wide, but not in .*model.name=FOLDER", wrong)
    copy = tmp_path / "job"
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_model("gpt2")), str(tiny_model("gpt2", seed=1))))
    refused([copy], "the weights of .* are not those that it was trained on")


def test_weights_of_a_space_need_the_space(run: Path, tmp_path: Path) -> None:
    origin = run / "logits" / "checkpoints" / "3072"
    shutil.copytree(origin, tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    cfg["metadata"] |= {"coordinates": "space", "dataset_path": "python-stdlib"}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(cfg))
    folded = all_sources(open_sources([origin], CFG))[0].subject.dictionary
    asis = all_sources(open_sources([tmp_path / "sae"], CFG))[0].subject.dictionary
    assert torch.equal(asis.encoder, load_saelens(origin)[0].encoder) and not torch.equal(asis.encoder, folded.encoder)
    (tmp_path / "sae" / "space.safetensors").unlink()
    with pytest.raises(UserError, match=r"space\.safetensors is missing"):
        open_sources([tmp_path / "sae"], CFG)


def test_same_text() -> None:
    one = DataConfig(source="a")
    assert same_text(one) == same_text(DataConfig(source=["a"], shuffle_characters=5))
    assert same_text(one) != same_text(DataConfig(source="a", bos="none"))


def test_dictionaries_in_any_format(tmp_path: Path) -> None:
    """One folder of each, and a state dict's own path: the same features in one report."""
    dictionary = load_saelens(saelens_folder(tmp_path / "saelens", dataset_path=None), fold_decoder_norm=True)[0]
    said = {"model_name": str(tiny_model("gpt2")), "hook_name": "blocks.1.hook_resid_post", "context_size": 48}
    write_dictionary(dictionary, tmp_path / "dl", "dictionary-learning", said)
    paths = [tmp_path / "saelens", tmp_path / "dl", tmp_path / "dl" / "ae.pt"]
    settings = CFG.model_copy(update={"data": DataConfig(source="python-stdlib")})
    with pytest.raises(UserError, match="given twice"):
        open_sources([paths[1], paths[1]], settings)
    sources = all_sources(open_sources(paths, settings))
    assert [source.metadata["format"] for source in sources] == ["saelens", *["dictionary-learning"] * 2]
    for source in sources:
        assert source.subject.site.name == "resid_post@1"
        assert torch.allclose(source.subject.dictionary.W_dec, dictionary.W_dec, atol=1e-6)
    with pytest.raises(UserError, match="in a format that is read .it has no cfg.json and no ae.pt"):
        (tmp_path / "empty").mkdir()
        find_origins([tmp_path / "empty"])


@pytest.mark.parametrize("name", ["layers.1", "of no name"])
def test_an_autoencoder_with_a_skip_connection_writes_where_it_reads(name: str, tmp_path: Path) -> None:
    """sparsify has such: `skip_connection` without `transcode`."""
    theirs, skipping = tmp_path / name, example("topk", d_in=WIDTH, d_out=WIDTH, skip=True)
    write_dictionary(skipping, theirs, "sparsify", {})
    assert json.loads((theirs / "cfg.json").read_text())["transcode"] is False
    settings = {"model": ModelConfig(name=str(tiny_model("gpt2"))), "data": DataConfig(source="python-stdlib")}
    named = {} if name == "layers.1" else {"site": "resid_post@1"}
    (source,) = all_sources(open_sources([theirs], CFG.model_copy(update={**settings, **named})))
    subject = source.subject
    assert subject.target_space is None and subject.written_site.name == subject.site.name == "resid_post@1"
    assert subject.dictionary.W_skip is not None
    run = run_with_dictionary(load_model(str(tiny_model("gpt2"))), theirs, [1, 2, 3], named.get("site"))
    assert run.read.sum() == 2
