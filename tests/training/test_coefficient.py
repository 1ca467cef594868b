"""The search for the sparsity coefficient: on dictionaries that answer as a formula says, and within a job."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sae_tools.config import DictionaryConfig, JobConfig, TrainingConfig
from sae_tools.config_loading import load_config
from sae_tools.training.coefficient import REACH, RISEN, CoefficientSearch
from sae_tools.training.run import run_job
from sae_tools.training.schedule import learning_rate_factor
from tests.jobs import write_job
from tests.training.resuming import contents, killed, resume

GO, FROZEN = torch.zeros(()), torch.ones(())
TRAINING = TrainingConfig(warmup_steps=50)


def searched(
    target: float,
    start: float,
    steps: int,
    *,
    right: float,
    slope: float,
    lag: float,
    noise: float = 0.015,
    grows: float = 0.0,
    fastest: float = math.inf,
    slow: bool = False,
):
    """(search, log L0 at every step, coefficients) on a dictionary whose L0 would be `target` at the coefficient
    `right`, goes by its power -slope, starts at 512 and follows within `lag` steps at the full learning rate, by
    `fastest` a step at most. grows: of log L0, while the learning rate falls to 0."""
    search, log_l0, g = CoefficientSearch(target, start, slow), math.log(512), torch.Generator().manual_seed(0)
    history = []
    for step in range(steps):
        factor = learning_rate_factor(step, steps, TRAINING)
        coefficient = search.coefficient().item()
        goes_to = math.log(target) - slope * math.log(coefficient / right)
        goes_to -= grows * factor
        log_l0 += factor * min(max((goes_to - log_l0) / lag, -fastest), fastest)
        seen = torch.tensor(log_l0 + noise * torch.randn((), generator=g).item()).exp()
        search.see(seen, step, steps, factor, 1.0, GO)
        history.append((log_l0, coefficient))
    return search, *zip(*history, strict=True)


@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("slope", "lag"), [(0.7, 60), (1.3, 60), (1.3, 150)])
@pytest.mark.parametrize("steps", [1500, 6000])
def test_it_arrives_and_settles(start: float, slope: float, lag: float, steps: int) -> None:
    _, log_l0, coefficients = searched(32, start, steps, right=1.0, slope=slope, lag=lag)
    assert log_l0[-1] == pytest.approx(math.log(32), abs=0.04)
    assert coefficients[-1] == pytest.approx(1.0, rel=0.1)
    last = coefficients[-steps // 20 :]
    assert max(last) / min(last) < 1.05
    if start <= 1:
        assert min(log_l0) > math.log(32) - 0.15  # features are not driven out on the way


@pytest.mark.parametrize("grows", [-0.1, 0.1])
def test_what_a_falling_learning_rate_adds_is_taken_off(grows: float) -> None:
    _, log_l0, _ = searched(16, 1.0, 2000, right=1.5, slope=0.8, lag=10, noise=0.04, grows=grows)
    assert log_l0[-1] == pytest.approx(math.log(16), abs=0.025)


def test_it_does_not_run_away_where_l0_cannot_follow() -> None:
    steps = 2000  # of which the way down takes 1,700
    _, log_l0, coefficients = searched(
        16, 1.0, steps, right=1.0, slope=0.6, lag=300, noise=0.04, fastest=4 / steps, slow=True
    )
    assert log_l0[-1] == pytest.approx(math.log(16), abs=0.1)
    assert max(coefficients) < REACH / 10


def test_bounds_and_verdicts() -> None:
    search, *_ = searched(32, 1.0, 2000, right=1.0, slope=1.3, lag=60)
    met = search.verdict(31.0, "a's l1")
    assert met["met"] and met["target"] == 32 and met["l0"] == 31 and "a's l1 at" in str(met["said"])
    missed = search.verdict(30.0, "a's l1")
    assert (
        not missed["met"] and "not met within 5%" in str(missed["said"]) and "held out differs" in str(missed["said"])
    )
    short, log_l0, _ = searched(32, 1.0, 60, right=30.0, slope=1.3, lag=60)
    assert log_l0[-1] > math.log(64) and "not settled" in str(short.verdict(math.exp(log_l0[-1]), "a's l1")["said"])
    for right, said in ((1e9, "largest"), (1e-9, "smallest")):
        stuck, *_ = searched(32, 1.0, 2000, right=right, slope=1.3, lag=60)
        assert stuck.coefficient().item() == pytest.approx(REACH if right > 1 else 1 / REACH, rel=1e-3)
        assert said in str(stuck.verdict(500.0, "a's l1")["said"])


def test_a_frozen_step_and_the_ramp_move_nothing() -> None:
    search = CoefficientSearch(32, 2.0)
    for step in range(10):
        search.see(torch.tensor(400.0), step, 1000, 1.0, RISEN * step / 10, GO)
    assert search.coefficient().item() == pytest.approx(2.0)
    search.see(torch.tensor(400.0), 10, 1000, 1.0, 1.0, GO)
    before = search.numbers.clone()
    search.see(torch.tensor(torch.nan), 11, 1000, 1.0, 1.0, FROZEN)
    assert torch.equal(before, search.numbers) and search.coefficient() > 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": {"kind": "topk"}}, "topk has none"),
        ({"architecture": {"kind": "matryoshka"}}, "matryoshka has none"),
        ({"architecture": {"kind": "jumprelu", "penalty": "quadratic", "target_l0": 4}}, "penalty step"),
        ({"architecture": {"kind": "relu"}, "d_sae": 20}, "more than its d_sae of 20"),
        ({"architecture": {"kind": "gated", "l1": 0}}, "l1, which must be above 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DictionaryConfig.model_validate({"site": "mlp_out@1", "match_l0": 32, **settings})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    common = {"site": "mlp_out@1", "d_sae": 40, "match_l0": 6}
    kinds = {
        "relu": {"kind": "relu", "l1": 0.3, "l1_warmup_steps": 5},
        "gated": {"kind": "gated", "l1": 0.3},
        "jumprelu": {"kind": "jumprelu", "l0_coefficient": 0.3},
    }
    dictionaries = {name: {**common, "architecture": architecture} for name, architecture in kinds.items()}
    dictionaries["matryoshka"] = {**common, "match_l0": None, "architecture": {"kind": "matryoshka", "k": 4}}
    return write_job(tmp_path_factory.mktemp("job"), dictionaries=dictionaries, fidelity={"tokens": 600})


def test_within_a_job(job: Path) -> None:
    out = io.StringIO()
    run = run_job(load_config(JobConfig, job), console=Console(file=out)).run.path
    lines = [json.loads(line)["dictionaries"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    fidelity = json.loads((run / "analysis" / "fidelity.json").read_text())
    (last,) = {path.parent.name for path in run.glob("*/checkpoints/3072/cfg.json")}
    assert "match_l0" not in fidelity["matryoshka"] and 2 < fidelity["matryoshka"]["l0"] < 8
    for name in ("relu", "gated", "jumprelu"):
        assert lines[0][name]["coefficient"] != lines[-1][name]["coefficient"]
        found = fidelity[name]["match_l0"]
        assert found["target"] == 6 and found["l0"] == fidelity[name]["l0"]
        assert found["met"] == (abs(found["l0"] - 6) <= 0.3) and f"{name}'s l" in found["said"]
        metadata = json.loads((run / name / "checkpoints" / last / "cfg.json").read_text())["metadata"]
        assert metadata["match_l0"] == 6 and metadata["coefficient"] == pytest.approx(found["coefficient"])
    killed("step", 59, job, "name=killed")
    expected, after = contents(run), resume(job.parent / "runs" / "killed")
    assert after.keys() == expected.keys() and [key for key in expected if after[key] != expected[key]] == []
    assert any(key.endswith("search.numbers") for key in expected)
