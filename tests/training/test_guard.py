import torch

from sae_tools.config import DictionaryConfig, TopKConfig, TrainingConfig
from sae_tools.dictionaries import build_dictionary
from sae_tools.models.sites import Site
from sae_tools.spaces import Space
from sae_tools.training.guard import Guard
from sae_tools.training.trainee import Trainee

D = 6


def trainee() -> Trainee:
    site = Site("mlp_out", 0, "blocks.0.hook_mlp_out", D)
    zeros = torch.zeros(D)
    space = Space("resid_update", site, D, D, "none", 1.0, zeros, zeros)
    cfg = DictionaryConfig(site="mlp_out@0", d_sae=12, architecture=TopKConfig(k=3), b_dec_init="zero")
    dictionary = build_dictionary(cfg, D, torch.Generator().manual_seed(0))
    return Trainee("it", site, cfg, TrainingConfig(batch_size=8, warmup_steps=0), space, dictionary, torch.ones(()))


def test_a_bad_step_freezes_everything_and_is_remembered_until_the_host_looks():
    it, guard = trainee(), Guard(1, "cpu")
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
    assert all(torch.equal(good[name], last[name]) for name in good if not name.startswith("parameter.W_dec"))
    assert torch.allclose(good["parameter.W_dec"], last["parameter.W_dec"], atol=1e-6)
    assert not torch.equal(states[1]["parameter.encoder"], good["parameter.encoder"])


def test_good_steps_leave_no_trace():
    it, guard = trainee(), Guard(1, "cpu")
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(1))
    guard.before(0, {})
    guard.check(0, [x], [it.propose(x, 0)])
    assert guard.look() is None and not guard.positions
    assert guard.frozen.item() == 0
