import pytest
import torch

from sae_tools.activations.buffer import ShuffleBuffer
from sae_tools.config import BatchTopKConfig, DictionaryConfig, JumpReLUConfig, TopKConfig, TrainingConfig
from sae_tools.dictionaries import build_dictionary
from sae_tools.models.sites import Site
from sae_tools.spaces import Space
from sae_tools.training import loop
from sae_tools.training.guard import Guard, NonFiniteError
from sae_tools.training.start import start_job
from sae_tools.training.trainee import Trainee
from tests.jobs import job_config

D = 6


TOPK = TopKConfig(k=3)


def trainee(architecture: TopKConfig | BatchTopKConfig | JumpReLUConfig = TOPK) -> Trainee:
    site = Site("mlp_out", 0, "blocks.0.hook_mlp_out", D)
    zeros = torch.zeros(D)
    space = Space("resid_update", site, D, D, "none", 1.0, zeros, zeros)
    cfg = DictionaryConfig(site="mlp_out@0", d_sae=12, architecture=architecture, b_dec_init="zero")
    dictionary = build_dictionary(cfg, D, torch.Generator().manual_seed(0))
    return Trainee("it", site, cfg, TrainingConfig(batch_size=8, warmup_steps=0), space, dictionary, torch.ones(()))


ARCHITECTURES = [TopKConfig(k=3), BatchTopKConfig(k=3), JumpReLUConfig(), JumpReLUConfig(init_threshold=2)]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.kind)
def test_a_bad_step_freezes_everything_and_is_remembered_until_the_host_looks(architecture):
    it, guard = trainee(architecture), Guard(1, "cpu")
    random = torch.Generator().manual_seed(1)
    states = []
    for step in range(6):
        x = torch.randn(8, D, generator=random)
        if step == 3:
            x[2, 4] = float("inf")
        guard.before(step, {"position": step})
        proposal = it.propose(x, step)
        guard.check(step, [x], [proposal])
        it.apply(proposal, step, 100, len(x), guard.frozen)
        states.append({name: value.clone() for name, value in it.tensors().items()})
    assert guard.look() == (3, {"position": 3}, 0, True)
    good, last = states[2], states[-1]
    assert good.keys() == last.keys()
    assert all(torch.equal(good[name], last[name]) for name in good)
    for name in ("parameter.encoder", "buffer.threshold", "parameter.threshold"):
        assert name not in good or not torch.equal(states[1][name], good[name])


def test_good_steps_leave_no_trace():
    it, guard = trainee(), Guard(1, "cpu")
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(1))
    guard.before(0, {})
    guard.check(0, [x], [it.propose(x, 0)])
    assert guard.look() is None and not guard.positions
    assert guard.frozen.item() == 0


class Silent:
    def update(self, tokens: int) -> None: ...

    def record(self, record: dict) -> None: ...


def test_a_bad_step_right_after_a_checkpoint_leaves_that_checkpoint_alone(tmp_path, monkeypatch):
    """Writing it again would first take it back, and a full disk or a kill would then cost a whole interval."""
    job = start_job(job_config(tmp_path))
    serve = ShuffleBuffer.__next__

    def serve_nan(buffer):
        rows = serve(buffer)
        if job.step == 8:  # of 24, with 3 checkpoints
            rows.activations["mlp_out@1"][0, 0] = float("nan")
        return rows

    written: list[int] = []
    save = loop.save_checkpoint

    def save_once(job, **position) -> None:
        assert job.step not in written
        written.append(job.step)
        save(job, **position)

    monkeypatch.setattr(ShuffleBuffer, "__next__", serve_nan)
    monkeypatch.setattr(loop, "save_checkpoint", save_once)
    with pytest.raises(NonFiniteError, match=r"step 9 in dictionary '(update|relu)'"):
        loop.train_job(job, Silent())
    newest = job.run.newest_checkpoint()
    assert newest is not None and newest["step"] == 8
