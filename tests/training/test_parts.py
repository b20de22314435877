"""The parts of a history that are asked for and shown never overlap, and time runs one way."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.histories import Histories
from recbole_tokenrec.training.parts import in_turn, next_part, random_part, window_part, without_some

pytestmark = pytest.mark.unit
SHARE = (0.1, 0.4)


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 200), rng.integers(1, 40, 199))
    return Histories(users, rng.integers(1, 1000, len(users)), n_users=200)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("draw", [random_part, next_part])
def test_every_user_of_two_items_has_a_target_and_something_visible(histories, generator, draw):
    is_target, visible = draw(histories, SHARE, generator)
    assert not (is_target & visible).any()
    for mask in (is_target, visible):
        number = torch.bincount(histories.rows()[mask], minlength=histories.n_users)
        assert (number[histories.counts() > 1] > 0).all()
    targets = torch.bincount(histories.rows()[is_target], minlength=histories.n_users)
    assert (targets <= (0.4 * histories.counts() + 0.5).clamp_min(1)).all()


def test_next_items_follow_the_visible_ones_at_once(histories, generator):
    is_target, visible = next_part(histories, SHARE, generator)
    for user in range(histories.n_users):
        part = slice(int(histories.indptr[user]), int(histories.indptr[user + 1]))
        cut = int(visible[part].sum())
        assert visible[part][:cut].all()
        assert is_target[part][cut : cut + int(is_target[part].sum())].all()


def test_some_items_are_left_out_but_no_users_first(histories, generator):
    parts = next_part(histories, SHARE, generator)
    thinned = without_some(histories, parts, 0.25, generator)
    for before, after in zip(parts, thinned):
        assert not (after & ~before).any()  # nothing is added
    assert sum(map(torch.sum, thinned)) / sum(map(torch.sum, parts)) == pytest.approx(0.75, abs=0.04)
    first = histories.indptr[:-1][histories.counts() > 1]
    assert thinned[1][first].all()
    other = without_some(histories, parts, 0.25, generator)
    assert not torch.equal(other[1], thinned[1])


def test_late_cuts_are_likelier(histories, generator):
    count = histories.counts().float()
    shares = torch.zeros_like(count)
    for _ in range(20):
        _, visible = next_part(histories, SHARE, generator)
        shares += torch.bincount(histories.rows()[visible], minlength=200) / count / 20
    assert 0.6 < shares[count > 10].mean() < 0.75  # the mean of a square root is 2/3


def test_random_parts_show_all_that_is_not_asked(histories, generator):
    is_target, visible = random_part(histories, SHARE, generator)
    assert (is_target ^ visible).all()


def test_windows_follow_what_is_visible_and_hold_at_least_half_of_a_short_history(histories, generator):
    rows, count = histories.rows(), histories.counts()
    is_target, visible = window_part(histories, 7, generator)
    for user in range(histories.n_users):
        part = slice(int(histories.indptr[user]), int(histories.indptr[user + 1]))
        shown, asked = int(visible[part].sum()), int(is_target[part].sum())
        if count[user] < 2:
            assert shown == asked == 0
        else:
            assert visible[part][:shown].all() and is_target[part][shown : shown + asked].all()
            assert shown >= 1 and min(7, int(count[user]) // 2) <= asked <= 7
    assert len(torch.bincount(rows[visible], minlength=200).unique()) > 10  # cuts differ


@pytest.fixture
def turn():
    rows, items = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([5, 6, 7, 8, 9])
    return in_turn(rows, items, torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 3, 4])), items


def test_known_at_each_target_is_what_was_shown_and_the_targets_before_it(turn):
    asked, known = turn[0].known
    found = [list(zip(known[asked == at].tolist(), turn[0].known_ages[asked == at].tolist())) for at in range(5)]
    assert found == [
        [(1, 1), (2, 0)], [(1, 2), (2, 1), (5, 0)], [(1, 3), (2, 2), (5, 1), (6, 0)], [(4, 0)], [(4, 1), (8, 0)],
    ]  # fmt: skip


def test_items_to_come_stay_in_their_row(turn):
    numbers, items = turn[0].ahead(turn[1], 2)
    assert [items[numbers == at].tolist() for at in range(5)] == [[5, 6], [6, 7], [7], [8, 9], [9]]
