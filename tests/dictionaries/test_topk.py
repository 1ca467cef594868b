"""TopK: what is chosen, and how dead features are found (its gradients: test_battery.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_tools.dictionaries import TopKDictionary
from sae_tools.dictionaries.sparse import Pairs, decode_at, preactivations_at, torch_kernels
from sae_tools.dictionaries.sparse.select import DeadCandidates
from tests.dictionaries.reference import check_step, rows
from tests.dictionaries.reference import make as make_any


def make(d: int, d_sae: int, k: int) -> TopKDictionary:
    dictionary = make_any("topk", d=d, d_sae=d_sae, k=k)
    assert isinstance(dictionary, TopKDictionary)
    return dictionary


def test_ties_and_features_that_no_row_uses() -> None:
    dictionary = make(8, 30, 4)
    with torch.no_grad():
        for tensor in (dictionary.encoder, dictionary.b_enc):
            tensor[10:20] = tensor[0:10]  # equal pre-activations
        dictionary.b_enc[25:] = -100
    out = check_step(dictionary, rows(40, 8), 1e-9)
    assert (out.fired[25:] == 0).all()
    for gradient in torch.autograd.grad(dictionary.losses(rows(40, 8)).loss, list(dictionary.parameters()))[:3]:
        assert (gradient[25:] == 0).all()


def test_relu_comes_after_topk() -> None:
    dictionary = make(8, 30, 10)
    with torch.no_grad():
        dictionary.b_enc -= 2
    x = rows(100, 8)
    codes = dictionary.encode_sparse(x)
    l0 = (codes.values > 0).sum(-1)
    assert (codes.values >= 0).all() and l0.min() < 10
    assert torch.allclose(dictionary.decode(codes), dictionary.decode(dictionary.encode(x)))
    assert torch.allclose(dictionary(x), dictionary.decode(codes))
    check_step(dictionary, x, 1e-9)


def test_both_searches_for_dead_features_agree() -> None:
    """Off the CPU the auxiliary loss has fixed shapes and a mask; the loss is the same."""
    pre = make(8, 40, 4).pre_activations(rows(50, 8)).detach()
    for n_dead in (0, 1, 3, 6, 20, 40):
        dead = torch.arange(40) < n_dead
        counted, fixed = DeadCandidates(dead, 6, torch_kernels), DeadCandidates(dead, 6, torch_kernels)
        fixed.dead, fixed.columns = dead, None  # as off the CPU
        for part in pre.split(20):
            counted.see(part)
            fixed.see(part)
        few, all_six = counted.chosen(40), fixed.chosen(40)
        assert all_six is not None and (few is None) == (n_dead == 0)
        values, indices = all_six.values.view(50, 6), all_six.pairs.features.view(50, 6)
        alive = values > -torch.inf
        assert (indices[alive] < n_dead).all() and (alive.sum(-1) == min(6, n_dead)).all()
        if few is not None:
            n = min(6, n_dead)
            assert torch.equal(pre.gather(1, few.pairs.features.view(50, n).long()).flatten(), few.values)
            assert torch.equal(few.values.view(50, n).sort(-1).values, values.sort(-1).values[:, -n:])


def test_pre_activations_at_minus_infinity_stand_for_nothing() -> None:
    dictionary = make(8, 20, 4)
    x = rows(10, 8)
    values, indices = dictionary.pre_activations(x).detach().topk(6, dim=-1)
    cut = values.clone()
    cut[:, 4:] = -torch.inf

    def gradient(values: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        pairs, centred = Pairs.of_rows(indices, 20), x - dictionary.b_dec.detach()
        parameters = (dictionary.encoder, dictionary.b_enc, dictionary.b_dec)
        v = preactivations_at(values.flatten(), centred, *parameters, pairs).relu()
        loss = (x - decode_at(v, dictionary.W_dec, pairs)).pow(2).sum()
        return torch.autograd.grad(loss, list(dictionary.parameters()))

    for a, b in zip(gradient(cut, indices), gradient(values[:, :4], indices[:, :4]), strict=True):
        assert torch.isfinite(a).all() and torch.allclose(a, b)
