from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_tools import config_yaml
from sae_tools.config import JobConfig, LMConfig, ReLUConfig, TopKConfig
from sae_tools.config_loading import (
    config_differences,
    dump_config,
    first_difference,
    load_config,
    parse_config,
    settings,
)
from sae_tools.errors import UserError

GOOD = """\
name: demo
training:
  tokens: 2e6
  lr: 3e-4
dictionaries:
  up: &up
    site: mlp_out@3
    architecture: {k: 8}
  v1.5:
    <<: *up
    d_sae: 64
"""


def refused(text: str, *overrides: str, kind: type = JobConfig) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(kind, text, "job.yaml", overrides)
    message = str(caught.value)
    assert "\n" not in message and "pydantic" not in message and message.endswith((".", "?"))
    return message


def test_yaml_with_defaults_and_merge_keys():
    config = parse_config(JobConfig, GOOD)
    assert config.training.tokens == 2_000_000 and config.training.lr == 3e-4
    assert config.dictionaries["v1.5"].site == "mlp_out@3" and config.dictionaries["v1.5"].d_sae == 64
    assert config.dictionaries["up"].d_sae == 2048 and config.seed == 0
    assert isinstance(config.dictionaries["v1.5"].architecture, TopKConfig)


def test_empty_sections_take_their_defaults():
    config = parse_config(JobConfig, "training:\ndictionaries: {a: {site: x, space: }}\n")
    assert config.training.batch_size == 2048 and config.dictionaries["a"].space.kind == "resid_update"


def test_overrides_by_their_types():
    config = parse_config(
        JobConfig,
        GOOD,
        overrides=[
            "name=2024",
            "seed=7",
            "training.tokens=5e6",
            "training.clip_norm=null",
            "training.adam_betas=[0.5, 0.9]",
            "data.source=[a.txt, b]",
            "tracking.wandb=off",
            "dictionaries.v1.5.d_sae=32",
            "dictionaries.up.architecture={kind: relu, l1: 2}",
            "dictionaries.new={site: mlp_acts@1}",
        ],
    )
    assert (config.name, config.seed, config.training.tokens) == ("2024", 7, 5_000_000)
    assert config.training.clip_norm is None and config.training.adam_betas == (0.5, 0.9)
    assert config.data.source == ["a.txt", "b"] and config.tracking.wandb == "off"
    assert config.dictionaries["v1.5"].d_sae == 32 and config.dictionaries["up"].d_sae == 2048
    assert config.dictionaries["up"].architecture == ReLUConfig(l1=2)
    assert config.dictionaries["new"].site == "mlp_acts@1"


def test_override_of_a_mapping_shared_by_an_alias_changes_one_place():
    text = "dictionaries:\n  a: {site: x, space: &s {centre: mean}}\n  b: {site: x, space: *s}\n"
    config = parse_config(JobConfig, text, overrides=["dictionaries.a.space.centre=none"])
    assert config.dictionaries["a"].space.centre == "none" and config.dictionaries["b"].space.centre == "mean"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.toknes=5", "'training.toknes' is no setting; did you mean 'training.tokens'?"),
        ("tokens=5", "did you mean 'training.tokens' or 'fidelity.tokens'?"),
        ("training.tokens=abc", "training.tokens: expected an integer, found 'abc'."),
        ("training.tokens=0", "training.tokens: expected at least 1, found 0."),
        ("training.tokens=1.5", "expected an integer, found 1.5."),
        ("training.lr=.inf", "expected a finite number, found inf."),
        ("training.adam_betas=[0.9, 1]", "training.adam_betas.1: expected less than 1.0, found 1."),
        ("training.adam_betas=[0.9]", "training.adam_betas: expected a list of more than 1 values."),
        ("training=3", "training: expected a mapping of settings, found 3."),
        ("training", "expected key.path=value"),
        ("training.tokens=[", "not valid YAML"),
        ("seed=true", "seed: true is no value for it."),
        ("name=a/b", "name: expected a name of letters, digits"),
        ("name=", "name: expected text, found null."),
        ("name.x=3", "'name' has no settings below it."),
        ("tracking.wandb=yes", "tracking.wandb: expected 'off', 'offline' or 'online', found 'yes'."),
        ("data.source={a: 1}", "data.source: expected text or a list, found a mapping."),
        ("data.source=[1]", "data.source: expected text"),
        ("dictionaries={}", "dictionaries: expected at least 1 of them"),
        ("dictionaries.up=5", "dictionaries.up: expected a mapping of settings, found 5."),
        ("dictionaries.uq.d_sae=4", "no 'dictionaries.uq'; did you mean 'up'?"),
        ("dictionaries.n={sit: x}", "'dictionaries.n.sit' is no setting; did you mean 'dictionaries.n.site'?"),
        ("dictionaries.a b={site: x}", "dictionaries.a b: expected a name"),
        ("dictionaries.Up={site: x}", "cannot be named 'Up', its folder would be that of 'up'"),
        ("dictionaries.analysis={site: x}", "its folder would be the run's own 'analysis'"),
        (
            "dictionaries.up.architecture.kk=4",
            "no setting of kind 'topk'; did you mean 'dictionaries.up.architecture.k'",
        ),
        ("dictionaries.up.architecture.l1=4", "no setting of kind 'topk' but of 'relu' or 'gated'."),
        (
            "dictionaries.up.architecture.kind=foo",
            "architecture.kind: expected 'topk', 'batchtopk', 'matryoshka', 'relu', 'gated' or 'jumprelu', found 'foo'",
        ),
        ("dictionaries.up.architecture.k=0", "dictionaries.up.architecture.k: expected at least 1, found 0."),
        ("dictionaries.v1.5.d_sae=4", "dictionaries.v1.5: architecture.k is 8, more than its d_sae of 4 features."),
    ],
)
def test_wrong_override_gets_one_sentence_that_names_it(override: str, said: str):
    message = refused(GOOD, override)
    assert message.startswith(f"override {override!r}") and said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'dictionaries' is missing and has no default."),
        ("- 1", "job.yaml: expected settings as `key: value`"),
        ("name: x\nname: y", "job.yaml, line 2: the key 'name' stands twice in one mapping."),
        ("name: x\n1: 2", "job.yaml, line 2: a key must be text, not 1 (put it in quotes)."),
        ("a: b: c", "job.yaml, line 1: not valid YAML: mapping values are not allowed here."),
        ("seed: 1\n\ndictionaries:\n  up:\n    sit: x", "job.yaml, line 5: 'dictionaries.up.sit' is no setting"),
        (
            "seed: 1\ndictionaries:\n  up:\n    site: 3",
            "job.yaml, line 4: dictionaries.up.site: expected text, found 3 (put",
        ),
        ("seed: 1\ndictionaries:\n  up: {}", "job.yaml, line 3: 'dictionaries.up.site' is missing and has no default."),
        ("a: &a [*a]", "job.yaml, line 1: an alias that contains itself."),
        ("a: &a {<<: *a}", "job.yaml, line 1: an alias that contains itself."),
        ("<<: 3", "`<<` takes over a mapping, not 3."),
        ("a: *z", "job.yaml, line 1: not valid YAML: found undefined alias 'z'."),
        ("x: !!python/object:os.system 3", "job.yaml, line 1: not valid YAML"),
        ("[" * 5000, "nested too deep"),
        ("\x00", "not valid YAML"),
    ],
)
def test_wrong_yaml_gets_one_sentence_with_its_line(text: str, said: str):
    message = refused(text)
    assert said in message and message.startswith("job.yaml")


@pytest.mark.parametrize("merge", ["a{}: &a{} [{}]", "a{}: &a{} {{<<: [{}]}}"])
def test_aliases_that_unfold_without_end_are_refused(merge: str):
    lines = ["a0: &a0 {x: 1}"] + [merge.format(i, i, ", ".join([f"*a{i - 1}"] * 10)) for i in range(1, 12)]
    assert "too many for a configuration" in refused("\n".join(lines))


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(UserError, match="missing.yaml: the configuration cannot be read"):
        load_config(JobConfig, tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(JobConfig, tmp_path)
    (tmp_path / "weights").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text"):
        load_config(JobConfig, tmp_path / "weights")
    (tmp_path / "large").write_bytes(b"#" * 1_000_001)
    with pytest.raises(UserError, match="larger than"):
        load_config(JobConfig, tmp_path / "large")
    (tmp_path / "job.yaml").write_text(GOOD)
    assert load_config(JobConfig, tmp_path / "job.yaml", ["seed=3"]).seed == 3


def test_differences_by_dotted_key():
    a = parse_config(JobConfig, GOOD)
    b = parse_config(JobConfig, GOOD, overrides=["seed=1", "dictionaries.up.d_sae=9", "provenance={data: {files: 3}}"])
    assert config_differences(a, b) == {
        "seed": (0, 1),
        "dictionaries.up.d_sae": (2048, 9),
        "provenance.data.files": (None, 3),
    }
    assert config_differences(a, a) == {} and first_difference(a, a) is None
    assert first_difference(a, b) == "seed is 0, but the run has 1"
    assert first_difference(a, b, ignore=["seed", "dictionaries.up"]) == (
        "provenance.data.files is null, but the run has 3"
    )
    assert first_difference(a, b, ignore=["seed", "dictionaries", "provenance"]) is None


def test_every_setting_is_listed_with_its_default():
    listed = {key: default for key, default, _ in settings(JobConfig)}
    assert listed["training.lr"] == 3e-4 and listed["dictionaries.*.site"] is ...
    assert listed["dictionaries.*.architecture.k"] == 32 and listed["dictionaries.*.architecture.l1"] == 1.0
    documented = {key: text for key, _, text in settings(LMConfig)}
    assert "AdamW" not in documented["training.tokens"] and "tokenizer.json" in documented["tokenizer.path"]


texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["3e-4", "off", "no", "null", "~", "1_000", "2024-01-01", "0x10", "012", "<<", "=", "a: b", "# c", " x", "1:30"]
    ),
)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts
)  # fmt: skip


@given(st.recursive(values, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)))
def test_yaml_reads_back_what_it_wrote(value):
    if isinstance(value, str) and "\x00" in value:
        return
    try:
        back, _ = config_yaml.parse(config_yaml.dump(value), "x")
    except UserError as error:
        raise AssertionError(f"{config_yaml.dump(value)!r}: {error}") from None
    assert back == value and type(back) is type(value)


positive = st.floats(1e-12, 1e12)
jobs = st.fixed_dictionaries(
    {"dictionaries": st.dictionaries(
        st.from_regex(r"d[a-z0-9._-]{0,8}", fullmatch=True),
        st.fixed_dictionaries({
            "site": texts,
            "d_sae": st.integers(100, 10**7),
            "architecture": st.one_of(
                st.fixed_dictionaries({"k": st.integers(1, 100), "aux_k": st.none() | st.integers(1, 5)}),
                st.fixed_dictionaries(
                    {"kind": st.just("relu"), "l1": positive, "resample_at": st.lists(st.integers(1, 99))}
                ),
            ),
            "lr": st.none() | positive,
        }), min_size=1, max_size=3)},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**31 - 1),
        "data": st.fixed_dictionaries({"source": texts | st.lists(texts)}),
        "training": st.fixed_dictionaries({"lr": positive, "clip_norm": st.none() | positive}),
    },
)  # fmt: skip


@given(jobs)
def test_resolved_configuration_loads_back_equal(tree):
    config = JobConfig.model_validate(tree)
    assert parse_config(JobConfig, dump_config(config)) == config


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=2))
def test_any_text_is_a_configuration_or_one_sentence(text, overrides):
    try:
        parse_config(JobConfig, text, "x", overrides)
    except UserError as error:
        assert str(error)


keys = st.sampled_from(
    "training dictionaries a architecture kind k site space lr data source adam_betas name resample_at".split()
)


@given(st.recursive(values, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=5), max_leaves=12))
def test_any_tree_is_a_configuration_or_one_sentence(tree):
    try:
        parse_config(JobConfig, config_yaml.dump({"dictionaries": tree}), "x")
        parse_config(JobConfig, config_yaml.dump(tree), "x")
    except UserError as error:
        assert "\n" not in str(error)
