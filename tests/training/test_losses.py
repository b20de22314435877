"""Losses by hand, and the one-pass softmax against plain autograd."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_tokenrec.training.losses import Teacher, cosine, pairwise_cosine_loss, softmax_cosine_loss

pytestmark = pytest.mark.unit


def test_equations_19_and_20_by_hand():
    z = torch.tensor([[3.0, 4.0]])
    positive, negative = torch.tensor([[4.0, 3.0]]), torch.tensor([[0.0, 2.0]])
    assert cosine(z, positive).item() == pytest.approx(24 / 25, abs=1e-6)  # Eq. 19
    # Eq. 20: 1 - .96 + max(0, .8 - .1)
    assert pairwise_cosine_loss(z, positive, negative, margin=0.1).item() == pytest.approx(0.04 + 0.7, abs=1e-6)
    # a negative that is far enough away costs nothing
    assert pairwise_cosine_loss(z, positive, -negative, margin=0.1).item() == pytest.approx(0.04, abs=1e-6)


def test_softmax_by_hand():
    items = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])  # row 0 is padding
    loss = softmax_cosine_loss(torch.tensor([[2.0, 0.0]]), items, torch.tensor([0]), torch.tensor([1]), 0.5)
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 1) - 2, abs=1e-6)


def reference(users, items, rows, targets, temperature, weights, masked, teacher):
    logits = F.normalize(users, dim=-1) @ F.normalize(items, dim=-1).T / temperature
    blocked = torch.zeros_like(logits, dtype=torch.bool)
    blocked[:, 0] = True
    if masked is not None:
        blocked[masked] = True
    logp = logits.masked_fill(blocked, -1e9).log_softmax(dim=-1)
    weights = weights / weights.sum()
    hard = -(logp[rows, targets] * weights).sum()
    if teacher is None:
        return hard
    teacher, share = (teacher.users @ teacher.items.T).masked_fill(blocked, -1e9).softmax(dim=-1), teacher.weight
    mass = torch.zeros(len(users)).index_add_(0, rows, weights)
    soft = -(mass * (teacher * logp.masked_fill(blocked, 0)).sum(dim=1)).sum()
    return (1 - share) * hard + share * soft


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("block", [None, 9, 20])  # four rows at once, one, two
@pytest.mark.parametrize("turned", [False, True])  # pairs in the order of their rows, or not
def test_one_pass_equals_autograd(with_mask, with_teacher, block, turned):
    torch.manual_seed(0)
    rows, targets = torch.tensor([0, 0, 1, 3]), torch.tensor([2, 5, 1, 8])
    if turned:
        rows, targets = rows.flip(0), targets.flip(0)
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0])
    masked = (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 1])) if with_mask else None
    teacher = Teacher(torch.randn(4, 3), torch.randn(9, 3), 0.4) if with_teacher else None
    results = []
    for function in ("ours", "reference"):
        torch.manual_seed(1)
        users, items = torch.randn(4, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
        if function == "ours":
            loss = softmax_cosine_loss(users, items, rows, targets, 0.2, weights, masked, teacher, block=block)
        else:
            loss = reference(users, items, rows, targets, 0.2, weights, masked, teacher)
        (3 * loss).backward()
        results.append((loss, users.grad, items.grad))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_low_precision_stays_close():
    torch.manual_seed(0)
    users, items = torch.randn(8, 32), torch.randn(50, 32)
    rows, targets = torch.arange(8), torch.arange(1, 9)
    exact = softmax_cosine_loss(users, items, rows, targets, 0.15)
    coarse = softmax_cosine_loss(users, items, rows, targets, 0.15, low_precision=True)
    assert coarse.item() == pytest.approx(exact.item(), rel=0.01)
