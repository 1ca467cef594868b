"""What every panel puts into the page, against the files that it comes from."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from sae_tools.analysis.feature_files import FeatureFile
from sae_tools.errors import UserError
from sae_tools.report.blobs import blobs
from sae_tools.report.columns import unpack
from sae_tools.report.contents import ModelShown
from sae_tools.report.panels import PANELS, modules
from sae_tools.report.panels.run import describe
from tests.report.synthetic import synthetic_contents, synthetic_run

IDS = ["mlp_acts", "resid_update", "logit_update"]
CHUNK = 32


def file_of(run: Path, id: str) -> dict[str, np.ndarray]:
    """The feature file, read by safetensors alone."""
    return load_file(run / "analysis" / "features" / f"{id}.safetensors")


def test_every_feature_is_in_exactly_one_chunk(contents):
    names = [name for name, _ in blobs(contents)]
    assert names[0] == "report" and len(set(names)) == len(names)
    for id in IDS:
        assert [name for name in names if name.startswith(f"features/{id}/")] == [
            f"features/{id}/{c}" for c in range(3)
        ]
        assert f"dictionary/{id}" in names and f"density/{id}" in names
    assert "corpus/0" in names


def test_meta_says_what_is_shown(run: Path, blob):
    _, values = blob("report")
    meta = values["meta"]
    assert meta["title"] == "Features of synthetic" and meta["created"] == "2025-01-01T00:00:00Z"
    assert meta["chunk"] == CHUNK and meta["sharded"] is False
    assert [entry["id"] for entry in meta["dictionaries"]] == IDS
    kept = load_file(run / "analysis" / "features" / "corpus-0.safetensors")["kept"]
    for entry in meta["dictionaries"]:
        assert entry["d_sae"] == 70 and entry["k"] == 32 and entry["architecture"] == "topk"
        assert entry["run"] == "synthetic" and entry["name"] == entry["id"]
        assert entry["has_logits"] and entry["has_density"] and entry["tokens"] == kept.sum()
        assert entry["matches"] == [id for id in IDS if id != entry["id"]]
        assert (entry["ultra_rare_below"], entry["rare_below"], entry["dense_above"]) == (1e-4, 1e-3, 0.1)
    assert meta["corpora"] == [
        {"model": "bundled", "source": "python-stdlib", "held_out": True, "contexts": 24, "length": 64,
         "counted": int(kept.sum()), "before": 20, "after": 11, "intervals": 11}
    ]  # fmt: skip


def test_the_run_is_what_its_files_say(run: Path, blob):
    _, values = blob("report")
    (shown,) = values["run"]["runs"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert yaml.safe_load(shown["config"]) == config
    assert shown["model"]["d_vocab"] == config["provenance"]["model"]["d_vocab"] and shown["model"]["layers"] == 4
    assert shown["data"] == config["provenance"]["data"] and shown["versions"] == config["provenance"]["versions"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert shown["tokens"] == 1_000_000 == lines[-1]["tokens"]
    assert shown["seconds"] == pytest.approx(sum(line["time"]["seconds"] for line in lines))
    assert shown["tokens_per_s"] == pytest.approx(1_000_000 / shown["seconds"])
    (curves,) = values["curves"]["runs"]
    assert curves["tokens"] == [line["tokens"] for line in lines]
    assert curves["tokens_per_s"][3] == pytest.approx(50_000 / lines[3]["time"]["seconds"])
    for id in IDS:
        for key in ("loss", "l0", "squared_error", "fvu", "dead", "lr"):
            assert curves["dictionaries"][id][key] == [line["dictionaries"][id][key] for line in lines]


def test_fidelity_and_spaces_are_the_files_figures(run: Path, blob):
    _, values = blob("report")
    written = json.loads((run / "analysis" / "fidelity.json").read_text())
    assert values["fidelity"]["entries"] == written
    assert set(values["fidelity"]["definitions"]) <= {*written["mlp_acts"]} and "0.0001" in str(values["fidelity"])
    spaces = values["spaces"]
    assert spaces["ids"] == IDS and spaces["spaces"] == IDS
    for id in IDS:
        assert spaces["fvu"][id] == written[id]["fvu"] and spaces["kl"][id] == written[id]["kl"]
        assert spaces["ce_recovered"][id] == written[id]["ce_recovered"]
        arrays = file_of(run, id)
        for d, other in enumerate(i for i in IDS if i != id):
            best = [row[d][0] for row, fires in zip(arrays["match_value"], arrays["fires"], strict=True) if fires]
            found = spaces["matches"][id][other]
            assert found["median"] == pytest.approx(
                float(np.sort(best)[(len(best) - 1) // 2 : len(best) // 2 + 1].mean())
            )
            assert found["above_half"] == pytest.approx(sum(value > 0.5 for value in best) / len(best))


@pytest.mark.parametrize("id", IDS)
def test_the_tables_columns(run: Path, blob, id: str):
    written = file_of(run, id)
    arrays, values = blob(f"dictionary/{id}")
    columns = {name.removeprefix("features."): array for name, array in arrays.items()}
    for name in ("fires", "maximum", "mean_active", "b_enc", "projection", "cosine", "decoder_norm", "logit_norm"):
        np.testing.assert_array_equal(columns[name], written[name], name)
    np.testing.assert_array_equal(columns["logit_top"], written["logit_top_token"])
    np.testing.assert_array_equal(columns["logit_bottom"], written["logit_bottom_token"])
    assert columns["logit_top"].shape[1] == 10 and columns["logit_top"].dtype.itemsize <= 2
    last = load_file(run / id / "density" / "0011.safetensors")
    np.testing.assert_array_equal(columns["training_fires"], last["fires"])
    assert values["features"]["training_tokens_window"] == 1_000_000 // 12
    corpus = load_file(run / "analysis" / "features" / "corpus-0.safetensors")["tokens"].reshape(-1)
    for feature in range(70):
        assert columns["best_match"][feature] == max(0, written["match_value"][feature, :, 0].max())
        examples = range(written["example_start"][feature], written["example_start"][feature + 1])
        tokens = [int(corpus[written["example_token"][e]]) for e in examples if written["example_group"][e] == 0]
        commonest = sorted(Counter(tokens).items(), key=lambda item: (-item[1], item[0]))[:3]
        expected = [token for token, _ in commonest] + [0xFFFFFFFF] * (3 - len(commonest))
        assert columns["peak_token"][feature].tolist() == expected, feature


@pytest.mark.parametrize("id", IDS)
def test_the_history(run: Path, blob, id: str):
    arrays, values = blob(f"density/{id}")
    files = sorted((run / id / "density").iterdir())
    np.testing.assert_array_equal(arrays["density.fires"], np.stack([load_file(file)["fires"] for file in files]))
    assert arrays["density.tokens"].tolist() == [1_000_000 // 12] * 12
    assert arrays["density.end"].tolist() == [(i + 1) * (1_000_000 // 12) for i in range(12)]
    (event,) = values["density"]["events"]
    assert event["kind"] == "resampled" and event["features"] == load_file(files[3])["event_features"].tolist()


def test_the_corpus_and_its_vocabulary(run: Path, blob):
    arrays, values = blob("corpus/0")
    written = load_file(run / "analysis" / "features" / "corpus-0.safetensors")
    np.testing.assert_array_equal(arrays["corpus.tokens"], written["tokens"])
    np.testing.assert_array_equal(arrays["corpus.document"], written["document"])
    vocabulary = json.loads((run / "analysis" / "features" / "vocabulary-0.json").read_text())
    assert values["corpus"] == {"vocabulary": vocabulary["tokens"], "special": vocabulary["special"]}


@pytest.mark.parametrize("id", IDS)
def test_the_pages_of_features(run: Path, blob, id: str):
    """Every feature, example, token of a window and effect, read back as the page does, one by one."""
    written = file_of(run, id)
    for feature in range(70):
        arrays, _ = blob(f"features/{id}/{feature // CHUNK}")
        at = feature % CHUNK
        for panel, names in {
            "activations": ["histogram", "maximum"],
            "neighbours": [
                "nearest_feature", "nearest_cosine", "antipode_feature", "antipode_cosine", "correlated_feature",
                "correlated_value", "match_feature", "match_value", "match_cosine",
            ],
        }.items():  # fmt: skip
            for name in names:
                np.testing.assert_array_equal(arrays[f"{panel}.{name}"][at], written[name][feature], name)
        for name in ("top_token", "top_value", "bottom_token", "bottom_value", "histogram", "range", "norm"):
            np.testing.assert_array_equal(arrays[f"logits.{name}"][at], written[f"logit_{name}"][feature], name)
        c = {name.removeprefix("contexts."): array for name, array in arrays.items() if name.startswith("contexts.")}
        first, last = c["example_start"][at : at + 2]
        begin, end = written["example_start"][feature : feature + 2]
        assert last - first == end - begin
        for e, w in zip(range(first, last), range(begin, end), strict=True):
            for name in ("example_token", "example_group", "example_value", "effect_measured"):
                assert c[name][e] == written[name][w], name
            for kind, tolerance in (
                ("window", written["maximum"][feature] / 65535),
                ("effect", c["effect_scale"][at] / 32767),
            ):
                start = int(c[f"{kind}_count"][:e].sum())
                mine = slice(start, start + int(c[f"{kind}_count"][e]))
                theirs = slice(*written[f"{kind}_start"][w : w + 2])
                assert c[f"{kind}_offset"][mine].tolist() == written[f"{kind}_offset"][theirs].tolist()
                shown = c[f"{kind}_value"][mine].astype(np.float64) * tolerance
                assert np.abs(shown - written[f"{kind}_value"][theirs]).max(initial=0) <= tolerance


def test_what_a_run_does_not_have_is_null_or_absent(tmp_path: Path):
    run = synthetic_run(tmp_path, features=20, contexts=8, length=32, d_vocab=200, windows=0, dictionaries=2)
    (run / "analysis" / "fidelity.json").unlink()
    (run / "metrics.jsonl").unlink()
    contents = synthetic_contents([run])
    logitless = {
        name: array for name, array in contents.dictionaries[0].arrays.items() if not name.startswith("logit_")
    }
    file = FeatureFile(logitless, contents.dictionaries[0].meta)
    contents.dictionaries[0] = dataclasses.replace(contents.dictionaries[0], file=file)
    found = {name: unpack(make()) for name, make in blobs(contents)}
    _, values = found["report"]
    first, second = values["meta"]["dictionaries"]
    assert (first["has_logits"], second["has_logits"]) == (False, True) and not first["has_density"]
    assert "density/mlp_acts" not in found
    assert values["run"]["runs"][0]["tokens"] is None and values["curves"]["runs"][0]["tokens"] == []
    assert values["fidelity"]["entries"] == {"mlp_acts": None, "resid_update": None}
    assert values["spaces"]["fvu"] == {"mlp_acts": None, "resid_update": None} and values["spaces"]["spaces"] == []
    arrays, _ = found["dictionary/mlp_acts"]
    assert "features.logit_top" not in arrays and "features.training_fires" not in arrays
    assert not any(name.startswith("logits.") for name in found["features/mlp_acts/0"][0])
    assert any(name.startswith("logits.") for name in found["features/resid_update/0"][0])


def test_a_model_that_has_learnt_nothing_is_not_shown_as_the_one_of_its_name(contents):
    (run,) = contents.runs
    facts = {**run.model.facts, "shuffle_weights": 0}
    shown = describe(dataclasses.replace(run, model=ModelShown(facts, "reaches 2 nats")))["model"]
    assert shown["name"] == f"{facts['name']} (weights shuffled, seed 0)" and shown["card"] is None


def test_figures_and_history_of_a_later_checkpoint_are_not_shown_for_an_earlier_one(run: Path):
    contents = synthetic_contents([run])
    from sae_tools.report.contents import load_contents
    from tests.report.synthetic import SyntheticOrigin

    earlier = SyntheticOrigin("mlp_acts", run / "mlp_acts" / "checkpoints" / "500000", run, 500_000)
    found = load_contents(
        [earlier], run / "analysis" / "features", models=[None], version="0", created="now", chunk=8,
        corpora=[{"model": "m", "source": "s", "held_out": True}],
    )  # fmt: skip
    (shown,) = found.dictionaries
    assert shown.fidelity is None and contents.dictionaries[0].fidelity is not None
    assert [window.end for window in shown.windows] == [
        window.end for window in contents.dictionaries[0].windows if window.end <= 500_000
    ]
    assert 0 < len(shown.windows) < 12


def test_a_panel_is_a_file_on_each_side():
    """Python files are those of PANELS and nothing else, with no function that nobody calls."""
    folder = Path(modules()["run"].__file__ or "").parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(modules()) <= set(PANELS)
    for module in modules().values():
        assert any(hasattr(module, name) for name in ("report", "dictionary", "features")), module


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", '{"step": 1}\n', "line 1: no record of metrics"),
        ("metrics.jsonl", '{"step": 1, "tokens": 1, "time": {"seconds": "x"}, "dictionaries": {}}\n', "no record"),
        ("analysis/fidelity.json", '{"mlp_acts": {"l0": 3}}', "no file of held-out figures"),
        ("analysis/fidelity.json", '{"mlp_acts": [1]}', "no file of held-out figures"),
    ],
)  # fmt: skip
def test_files_that_say_something_else_are_refused_in_a_sentence(tmp_path: Path, file: str, content: str, said: str):
    run = synthetic_run(tmp_path, features=20, contexts=8, length=32, d_vocab=200, windows=2, dictionaries=2)
    (run / file).write_text(content)
    with pytest.raises(UserError, match=said):
        synthetic_contents([run])


def test_windows_and_texts_of_another_measurement_are_refused(tmp_path: Path):
    run = synthetic_run(tmp_path / "a", features=20, contexts=8, length=32, d_vocab=200, windows=2, dictionaries=2)
    other = synthetic_run(tmp_path / "b", features=24, contexts=9, length=32, d_vocab=200, windows=2, dictionaries=2)
    window = next((run / "mlp_acts" / "density").glob("*.safetensors"))
    own = window.read_bytes()
    window.write_bytes((other / window.relative_to(run)).read_bytes())
    with pytest.raises(UserError, match="windows of another dictionary"):
        synthetic_contents([run])
    window.write_bytes(own)
    corpus = Path("analysis", "features", "corpus-0.safetensors")
    (run / corpus).write_bytes((other / corpus).read_bytes())
    with pytest.raises(UserError, match="measured on another text"):
        synthetic_contents([run])
