"""adamw: where torch's own AdamW goes, in one pass over memory where torch can, with a state that can be kept."""

import copy

import pytest
import torch
from torch import nn

from recbole_tokenrec.training.adamw import adamw, fused

pytestmark = pytest.mark.unit


def stepped(model, optimizer, number):
    generator = torch.Generator().manual_seed(7)
    for _ in range(number):
        optimizer.zero_grad(set_to_none=True)
        (model(torch.randn(16, 8, generator=generator)) - 1).pow(2).mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_it_goes_where_torchs_default_goes_and_goes_on_from_a_kept_state():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    theirs = copy.deepcopy(ours)
    groups = [{"params": [p for p in ours.parameters() if p.dim() > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in ours.parameters() if p.dim() < 2], "weight_decay": 0.0, "lr": 0.003}]
    optimizer = adamw(groups, lr=0.01, eps=1e-6)
    reference = torch.optim.AdamW(
        [{**group, "params": [dict(theirs.named_parameters())[n] for n, p in ours.named_parameters()
                              if any(p is one for one in group["params"])]} for group in groups],
        lr=0.01, eps=1e-6, fused=False, foreach=False,
    )
    for one, two in zip(stepped(ours, optimizer, 20), stepped(theirs, reference, 20)):
        torch.testing.assert_close(one, two)
    kept = copy.deepcopy((ours.state_dict(), optimizer.state_dict()))
    further = [one.clone() for one in stepped(ours, optimizer, 3)]
    ours.load_state_dict(kept[0])
    again = adamw([{"params": group["params"]} for group in groups], lr=0.5)
    again.load_state_dict(kept[1])
    for one, two in zip(further, stepped(ours, again, 3)):
        assert torch.equal(one, two)


def test_it_is_fused_where_torch_can():
    new = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)
    assert bool(adamw([nn.Parameter(torch.ones(2))], lr=0.1).param_groups[0]["fused"]) == new
    assert fused([{"params": [nn.Parameter(torch.ones(2, device="meta"))]}]) is None
