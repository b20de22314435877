"""Sampled softmax: the sum over the catalogue is unbiased; loss and gradient come close to the full ones."""

import pytest
import torch
from torch.nn import functional as F

from recbole_tokenrec.training.losses import Teacher, softmax_cosine_loss
from recbole_tokenrec.training.sampling import draw_candidates

pytestmark = pytest.mark.unit
N_ITEMS, DRAWN, USERS, TEMPERATURE = 5001, 500, 6, 0.2


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(4)
    items = torch.randn(N_ITEMS, 16, generator=generator)
    users = items[1 : 1 + USERS] + 0.7 * torch.randn(USERS, 16, generator=generator)  # near some items, as when trained
    rows = torch.arange(USERS).repeat_interleave(3)
    targets = torch.randint(1, N_ITEMS, (3 * USERS,), generator=generator)
    visible = torch.arange(USERS).repeat_interleave(5), torch.randint(1, N_ITEMS, (5 * USERS,), generator=generator)
    visible = tuple(part[~torch.isin(visible[1], targets)] for part in visible)
    return users, items, rows, targets, visible


def test_candidates_are_the_targets_and_a_uniform_sample_of_the_rest(problem):
    *_, targets, _ = problem
    torch.manual_seed(0)
    times, draws = torch.zeros(N_ITEMS), 300
    for _ in range(draws):
        drawn = draw_candidates(targets, N_ITEMS, DRAWN)
        assert len(drawn.items.unique()) == len(drawn.items) and 0 not in drawn.items
        assert torch.equal(drawn.column[drawn.items], torch.arange(len(drawn.items)))
        number = len(targets.unique())
        assert set(drawn.items[:number].tolist()) == set(targets.tolist()) and not drawn.log_weight[:number].any()
        # each of the others stands for its share: together they stand for all items that are no target
        assert float(drawn.log_weight[number:].exp().sum()) == pytest.approx(N_ITEMS - 1 - number, rel=1e-4)
        times[drawn.items[number:]] += 1
    others = times[1:][~torch.isin(torch.arange(1, N_ITEMS), targets)] / draws
    expected = float(others.mean())
    # binomial: no item is likelier than another
    assert float(others.std()) == pytest.approx((expected * (1 - expected) / draws) ** 0.5, rel=0.05)
    half = len(others) // 2
    assert float(others[:half].mean()) == pytest.approx(float(others[half:].mean()), rel=0.02)


def test_the_sum_over_the_catalogue_is_unbiased(problem):
    users, items, _, targets, _ = problem
    scores = F.normalize(users, dim=-1) @ F.normalize(items, dim=-1).T / TEMPERATURE
    exact = scores[:, 1:].exp().sum(dim=1)
    torch.manual_seed(0)
    estimates = []
    for _ in range(600):
        drawn = draw_candidates(targets, N_ITEMS, DRAWN)
        estimates.append((scores[:, drawn.items] + drawn.log_weight).exp().sum(dim=1))
    estimates = torch.stack(estimates)
    error = estimates.mean(dim=0) / exact - 1
    standard_error = estimates.std(dim=0) / exact / 600**0.5
    assert bool((error.abs() < 4 * standard_error).all()) and bool((standard_error < 0.02).all())


@pytest.mark.parametrize("with_teacher", [False, True])
def test_loss_and_gradient_come_close_to_the_full_ones(problem, with_teacher):
    users, items, rows, targets, visible = problem

    def loss_and_gradients(candidates):
        u, v = users.clone().requires_grad_(), items.clone().requires_grad_()
        teacher = None
        if with_teacher:
            known = items if candidates is None else items[candidates.items]
            teacher = Teacher(F.normalize(users, dim=-1) / 0.5, F.normalize(known, dim=-1), 0.5)
        loss = softmax_cosine_loss(
            u, v, rows, targets, TEMPERATURE, masked=visible, teacher=teacher, candidates=candidates
        )  # fmt: skip
        loss.backward()
        return loss.detach(), u.grad, v.grad

    full, *full_gradients = loss_and_gradients(None)
    torch.manual_seed(1)
    draws = [loss_and_gradients(draw_candidates(targets, N_ITEMS, DRAWN)) for _ in range(200)]
    losses = torch.stack([draw[0] for draw in draws])
    assert float(losses.mean()) == pytest.approx(float(full), rel=0.01)
    assert float(losses.std()) < 0.05 * float(full)
    for place, gradient in enumerate(full_gradients, start=1):
        mean = torch.stack([draw[place] for draw in draws]).mean(dim=0)
        assert float(F.cosine_similarity(mean.flatten(), gradient.flatten(), dim=0)) > 0.97


def test_small_catalogues_count_whole(problem):
    *_, targets, _ = problem
    assert draw_candidates(targets, N_ITEMS, N_ITEMS - 1) is None
    assert draw_candidates(targets, N_ITEMS, N_ITEMS - 2) is not None


def test_every_item_a_candidate_is_the_full_loss(problem):
    users, items, rows, targets, visible = problem
    drawn = draw_candidates(targets, N_ITEMS, N_ITEMS - 2)
    rest = torch.arange(1, N_ITEMS)[drawn.column[1:] < 0]
    column = drawn.column.clone()
    column[rest] = torch.arange(len(drawn.items), N_ITEMS - 1)
    everything = drawn._replace(
        items=torch.cat([drawn.items, rest]), log_weight=torch.zeros(N_ITEMS - 1), column=column
    )
    full, all_drawn = (
        softmax_cosine_loss(users, items, rows, targets, TEMPERATURE, masked=visible, candidates=candidates)
        for candidates in (None, everything)
    )
    torch.testing.assert_close(full, all_drawn)
