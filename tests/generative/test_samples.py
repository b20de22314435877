"""Samples hold what came before their target, and nothing that was held out."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.generative.samples import TrainingSamples
from recbole_tokenrec.histories import Histories

USERS, ITEMS = np.array([1, 1, 1, 1, 2, 3, 3]), np.array([5, 3, 8, 2, 5, 7, 5])


def samples():
    return TrainingSamples(Histories(USERS, ITEMS, 5), 10)


@pytest.mark.unit
def test_history_before_an_item():
    found = samples()
    places = found.places(torch.tensor([1, 1, 2, 3]), torch.tensor([8, 5, 5, 5]))
    assert [found.items[place] for place in places] == [8, 5, 5, 5]
    assert found.before(1, places[0], 20) == [5, 3] and found.before(1, places[0], 1) == [3]
    assert found.before(1, places[1], 20) == [] == found.before(2, places[2], 20)
    assert found.before(3, places[3], 20) == [7]
    assert found.after(1, places[0], 20) == [8, 2] and found.after(1, places[0], 1) == [8]
    assert found.after(1, places[1], 20) == [5, 3, 8, 2] and found.after(2, places[2], 3) == [5]
    assert found.latest(1, 3) == [3, 8, 2] and found.latest(4, 3) == []
    assert found.others(1, 2, 2) == [3, 8] and found.others(1, 9, 2) == [8, 2]


@pytest.mark.unit
def test_segments_end_before_their_target():
    found = samples()
    place = found.places(torch.tensor([1]), torch.tensor([2]))[0]
    drawn = {tuple(found.segment(1, place, 2)[0]) for _ in range(40)}
    assert drawn == {(8,), (3, 8)} and found.segment(1, place, 2)[1] == place
    first = found.places(torch.tensor([1]), torch.tensor([5]))[0]
    for _ in range(20):  # nothing precedes it: another place of the same user
        stretch, at = found.segment(1, first, 20)
        assert stretch and first < at < first + 4 and stretch == found.items[at - len(stretch) : at]
    first = found.places(torch.tensor([2]), torch.tensor([5]))[0]
    assert found.segment(2, first, 20) == ([], first)


@pytest.mark.unit
def test_negatives_are_untaken_and_real():
    found = samples()
    drawn = found.untaken(torch.tensor([1, 3]), 200)
    assert set(drawn[0].tolist()) == {1, 4, 6, 7, 9} and set(drawn[1].tolist()) == {1, 2, 3, 4, 6, 8, 9}
