"""Muon: what it does to matrices, that all else is AdamW's, and that its state can be kept."""

import copy

import pytest
import torch
from torch import nn

from recbole_tokenrec.training.adamw import adamw
from recbole_tokenrec.training.muon import Muon, orthogonalised, with_matrices_apart

pytestmark = pytest.mark.unit


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 16)
        self.first, self.second, self.last = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(16, 16))  # a matrix, but no linear layer's

    def forward(self, x):
        return self.last(self.second(self.first(self.table(x)).tanh()) @ self.scale)


@pytest.fixture
def small():
    torch.manual_seed(3)
    return Small()


def groups(model):
    return with_matrices_apart([{"params": list(model.parameters()), "weight_decay": 0.1}], model)


def steps(model, optimizer, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        loss = (model(torch.randint(9, (32,), generator=generator)) - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize(("low_precision", "error"), [(False, 1e-4), (True, 0.03)])
@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 40, 10), (2, 10, 40)])
def test_singular_values_become_about_1_and_the_directions_stay(shape, low_precision, error):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    matrices = u * s.clamp_min(0.1 * float(s.max())).unsqueeze(1) @ v  # values near 0 stay small
    found = orthogonalised(matrices, low_precision)
    assert found.dtype == torch.float32
    turned = u.transpose(1, 2) @ found @ v.transpose(1, 2)
    values = turned.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.allclose(turned, torch.diag_embed(values), atol=error)


def test_a_gradient_of_zeros_changes_nothing():
    assert not orthogonalised(torch.zeros(2, 5, 7)).any()


def test_weights_of_linear_layers_alone_are_taken(small):
    apart = groups(small)
    assert [group["muon"] for group in apart] == [False, True]
    names = {id(parameter): name for name, parameter in small.named_parameters()}
    assert {names[id(one)] for one in apart[1]["params"]} == {"first.weight", "second.weight", "last.weight"}
    assert sorted(len(group["params"]) for group in apart) == [3, 4]
    assert all(group["weight_decay"] == 0.1 for group in apart)


def test_all_else_is_adamw_to_the_bit(small):
    other = copy.deepcopy(small)
    for model in (small, other):  # Muon's own matrices would take the two apart
        for part in (model.first, model.second, model.last):
            part.weight.requires_grad_(False)
    steps(small, Muon(groups(small), lr=0.01), 5)
    steps(other, adamw(other.parameters(), lr=0.01, weight_decay=0.1), 5)
    for one, two in zip(small.parameters(), other.parameters()):
        assert torch.equal(one, two)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("low_precision", [False, True])
def test_matrices_go_where_torchs_own_muon_takes_them(low_precision):
    """torch's goes through bfloat16, which has three digits."""
    torch.manual_seed(4)
    ours = nn.ParameterList([nn.Parameter(torch.randn(12, 30)), nn.Parameter(torch.randn(12, 12))])
    theirs = copy.deepcopy(ours)
    keys = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    reference = torch.optim.Muon(list(theirs), **keys)
    optimizer = Muon([{"params": list(ours), "weight_decay": 0.1, "muon": True}], 0.02, low_precision)
    before = [one.detach().clone() for one in ours]
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        for one, two in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    for one, two, start in zip(ours, theirs, before):
        assert torch.nn.functional.cosine_similarity((one - start).flatten(), (two - start).flatten(), dim=0) > 0.999
        assert float((one - start).norm() / (two - start).norm()) == pytest.approx(1, abs=0.02)


def test_it_learns_and_goes_on_from_its_state(small):
    optimizer = Muon(groups(small), lr=0.01)
    first = steps(small, optimizer, 1)
    steps(small, optimizer, 20)
    taken_up = copy.deepcopy(small)
    again = Muon(groups(taken_up), lr=0.5)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    last = steps(small, optimizer, 10, seed=1)
    assert steps(taken_up, again, 10, seed=1) == last < 0.5 * first
    for one, two in zip(small.parameters(), taken_up.parameters()):
        assert torch.equal(one, two)
