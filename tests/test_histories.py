"""Histories: order, duplicates, ages, cuts, by hand."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.histories import Histories, take

pytestmark = pytest.mark.unit


@pytest.fixture
def histories():
    # user 1 takes 5, 6, 5, 7 (5 twice: the last counts); user 3 takes 9; users 0 and 2 nothing
    return Histories(np.array([1, 1, 3, 1, 1]), np.array([5, 6, 9, 5, 7]), n_users=4)


def test_rows_in_time_order_without_duplicates(histories):
    assert histories.items.tolist() == [6, 5, 7, 9]
    assert histories.indptr.tolist() == [0, 0, 3, 3, 4]
    assert histories.rows().tolist() == [1, 1, 1, 3]
    assert histories.ages().tolist() == [2, 1, 0, 0]


def test_latest_takes_the_newest(histories):
    items, number = histories.latest(torch.tensor([3, 1, 2]), most=2)
    assert items.tolist() == [[9, 0], [5, 7], [0, 0]]
    assert number.tolist() == [1, 2, 0]


def test_places_and_ranks(histories):
    rows, places = histories.places(torch.tensor([3, 1]))
    assert rows.tolist() == [0, 1, 1, 1] and places.tolist() == [3, 0, 1, 2]
    everybody = torch.arange(histories.n_users)
    assert torch.equal(histories.counts_of(everybody), histories.counts())
    keys = torch.tensor([0.9, 0.1, 0.5, 0.7], dtype=torch.float64)
    assert histories.ranks(keys).tolist() == [2, 0, 1, 0]


def test_extended_appends(histories):
    longer = histories.extended(np.array([1, 2]), np.array([8, 4]))
    assert longer.items.tolist() == [6, 5, 7, 8, 4, 9]
    assert histories.items.tolist() == [6, 5, 7, 9]


def test_take_pads_with_zero():
    assert take(torch.tensor([3, 4, 5]), torch.tensor([1, 0]), torch.tensor([2, 1])).tolist() == [[4, 5], [3, 0]]
