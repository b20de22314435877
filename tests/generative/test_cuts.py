"""Cuts of the histories: every item is a target once an epoch, on average, and batches hold prompts of like length."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.generative.cuts import Cuts
from recbole_tokenrec.histories import Histories

COUNTS = {1: 1, 2: 2, 3: 7, 4: 40, 6: 300}  # items of each user; user 5 has none


def cuts(targets, batch_size=8):
    users = np.repeat(list(COUNTS), list(COUNTS.values()))
    items = np.concatenate([1 + np.arange(n) for n in COUNTS.values()])  # an item's number is its place, from 1 on
    histories = Histories(users, items, 7)
    return Cuts(histories, batch_size, targets, 20, ("user_id", "item_id"), torch.Generator().manual_seed(3))


def epoch(loader):
    batches = list(loader)
    assert len(batches) == len(loader)
    pairs = [pair for batch in batches for pair in zip(batch["user_id"].tolist(), batch["item_id"].tolist())]
    return batches, pairs


@pytest.mark.unit
def test_one_target_is_every_interaction_once():
    _, pairs = epoch(cuts(1))
    assert sorted(pairs) == [(user, item) for user, n in COUNTS.items() for item in range(1, n + 1)]


@pytest.mark.unit
def test_items_are_targets_alike_often():
    loader, times, epochs = cuts(8), {user: np.zeros(n) for user, n in COUNTS.items()}, 400
    for _ in range(epochs):
        for user, item in epoch(loader)[1]:
            times[user][item - 1 : item + 7] += 1
    assert len(epoch(loader)[1]) == 1 + 1 + 1 + 5 + 38
    for user in (4, 6):  # those before the first cut less often
        assert times[user][8:] / epochs == pytest.approx(1, abs=0.15)
    assert times[3][-1] == epochs and times[3][0] / epochs == pytest.approx(1 / 7, abs=0.06)


@pytest.mark.unit
def test_batches_hold_prompts_of_like_length():
    loader = cuts(4)
    first, second = epoch(loader), epoch(loader)
    assert first[1] != second[1]
    whole = {user: torch.tensor(n) for user, n in COUNTS.items()}
    spread = []
    for batch in first[0]:
        before = batch["item_id"] - 1
        after = torch.stack([whole[user] for user in batch["user_id"].tolist()]) - before
        spread.append(np.ptp((before.clamp_max(20) + after.clamp_max(4)).numpy()))
    assert np.median(spread) <= 3 and len(spread) == len(loader)
    again = cuts(4)
    assert epoch(again)[1] == first[1]
