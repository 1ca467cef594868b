"""The configurations that ship: valid, and what their names promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_tools.config import JobConfig, LMConfig, ReLUConfig, TopKConfig
from sae_tools.config_loading import load_config

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted({*(ROOT / "configs").glob("*.yaml"), *(ROOT / "scripts" / "checks").glob("*.yaml")})


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path: Path):
    cfg = load_config(LMConfig if path.stem.startswith("lm-") else JobConfig, path)
    assert cfg.name == path.stem


def test_the_ones_that_users_look_for_are_there():
    stems = {path.stem for path in JOBS}
    assert {"quickstart", "gpt2-small", "pythia-70m", "towards-monosemanticity", "lm-bundled"} <= stems


def test_quickstart_is_three_spaces_of_one_mlp_at_the_same_k():
    cfg = load_config(JobConfig, ROOT / "configs" / "quickstart.yaml")
    assert [d.space.kind for d in cfg.dictionaries.values()] == ["mlp_acts", "resid_update", "logit_update"]
    assert len({d.site.split("@")[1] for d in cfg.dictionaries.values()}) == 1
    ks = {d.architecture.k for d in cfg.dictionaries.values() if isinstance(d.architecture, TopKConfig)}
    assert len(ks) == 1 and max(ks) <= 32
    assert cfg.model.name == "bundled" and cfg.data.source == "python-stdlib"


def test_towards_monosemanticity_is_the_papers_recipe():
    """Bricken et al. 2023: unit decoder rows, geometric median, four resamplings at quarters of the first half … of
    steps 25 k, 50 k, 75 k and 100 k, dead meaning silent for half of the time between two."""
    cfg = load_config(JobConfig, ROOT / "configs" / "towards-monosemanticity.yaml")
    (dictionary,) = cfg.dictionaries.values()
    architecture = dictionary.architecture
    assert isinstance(architecture, ReLUConfig) and architecture.form == "unit-norm"
    assert dictionary.b_dec_init == "geometric_median" and dictionary.encoder_init == "kaiming"
    first, *rest = architecture.resample_at
    assert rest == [2 * first, 3 * first, 4 * first]
    assert architecture.resample_dead_steps * 2 == first
    assert cfg.training.decay_fraction == 0 and cfg.training.clip_norm is None
