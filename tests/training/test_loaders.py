"""What the LLM4Rec stage's loader shows and asks: parts of training histories that never overlap."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.histories import Histories
from recbole_tokenrec.training.loaders import (
    AGE,
    HISTORY,
    HISTORY_LENGTH,
    TARGET_ITEMS,
    TARGET_ROWS,
    VISIBLE_ITEMS,
    VISIBLE_ROWS,
    PairsByUser,
    PromptsByUser,
    generator_for,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 30), rng.integers(1, 40, 29))
    return Histories(users, rng.integers(1, 200, len(users)), n_users=30)


def of_user(histories, user):
    return histories.items[histories.indptr[user] : histories.indptr[user + 1]].tolist()


@pytest.mark.parametrize("sequential", [False, True])
def test_targets_and_visible_items_are_disjoint_parts_of_the_history(histories, sequential):
    loader = PromptsByUser(histories, 8, "user_id", (0.1, 0.5), 10, 3, sequential)
    seen = []
    for batch in loader.epoch(generator_for(1, "llm", 0)):
        for row, user in enumerate(batch["user_id"].tolist()):
            seen.append(user)
            own = of_user(histories, user)
            targets = batch[TARGET_ITEMS][batch[TARGET_ROWS] == row].tolist()
            visible = batch[VISIBLE_ITEMS][batch[VISIBLE_ROWS] == row].tolist()
            listed = batch[HISTORY][row, : batch[HISTORY_LENGTH][row]].tolist()
            assert targets and set(targets) <= set(own)
            assert not set(targets) & set(visible)
            assert set(listed) <= set(visible) and len(listed) == min(len(visible), 10)
            if sequential and len(own) > 1:
                cut = len(visible)
                assert visible == own[:cut] and targets == own[cut : cut + len(targets)]
                assert listed == visible[-10:]
            if not sequential:
                assert sorted(targets + visible) == sorted(own)
    assert sorted(seen) == sorted(set(histories.rows().tolist()))  # every user once


def test_an_epoch_depends_on_seed_and_number_only(histories):
    loader = PromptsByUser(histories, 8, "user_id", (0.1, 0.5), 10, 3)

    def targets(epoch):
        return torch.cat([batch[TARGET_ITEMS] for batch in loader.epoch(generator_for(1, "llm", epoch))])

    first, again, other = targets(0), targets(0), targets(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_codes_are_made_from_what_is_visible(histories):
    masks = []

    def codes_of(visible):
        masks.append(visible)
        return torch.zeros(30, 2, dtype=torch.long)

    loader = PromptsByUser(histories, 8, "user_id", (0.1, 0.5), 10, 3, codes_of=codes_of)
    targets = sum(len(batch[TARGET_ITEMS]) for batch in loader.epoch(generator_for(1, "llm", 0)))
    assert len(masks) == 1 and int((~masks[0]).sum()) == targets


def test_pairs_by_user_cover_every_interaction_once(histories):
    loader = PairsByUser(histories, 7, "user_id", "item_id")
    pairs, ages = [], []
    for batch in loader.epoch(generator_for(1, "cf", 0)):
        assert len(batch["user_id"].unique()) <= 7
        pairs += list(zip(batch["user_id"].tolist(), batch["item_id"].tolist()))
        ages += batch[AGE].tolist()
    assert sorted(pairs) == sorted(zip(histories.rows().tolist(), histories.items.tolist()))
    assert sorted(ages) == sorted(histories.ages().tolist())
