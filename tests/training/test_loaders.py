"""What the LLM4Rec stage's loader shows and asks: parts of training histories that never overlap."""

import functools

import numpy as np
import pytest
import torch

from recbole_tokenrec.errors import DataError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.training.loaders import (
    AGE,
    HISTORY,
    HISTORY_LENGTH,
    TARGET_ITEMS,
    TARGET_ROWS,
    USER_CODES,
    VECTORS,
    VISIBLE_ITEMS,
    VISIBLE_ROWS,
    HeldOutByUser,
    PairsByUser,
    PromptsByUser,
    generator_for,
)
from recbole_tokenrec.training.parts import next_part, random_part, window_part

pytestmark = pytest.mark.unit


@pytest.fixture
def histories():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 30), rng.integers(1, 40, 29))
    return Histories(users, rng.integers(1, 200, len(users)), n_users=30)


def of_user(histories, user):
    return histories.items[histories.indptr[user] : histories.indptr[user + 1]].tolist()


def loader_of(histories, draw=random_part, most=10, **keys):
    parts = functools.partial(draw, histories, (0.1, 0.5))
    return PromptsByUser(histories, 8, "user_id", parts, most, 3, **keys)


@pytest.mark.parametrize("sequential", [False, True])
def test_prompts_list_visible_items_only_and_targets_are_others(histories, sequential):
    loader = loader_of(histories, next_part if sequential else random_part, sequential=sequential)
    seen = []
    for batch in loader.epoch(generator_for(1, "llm", 0)):
        for row, user in enumerate(batch["user_id"].tolist()):
            seen.append(user)
            own = of_user(histories, user)
            targets = batch[TARGET_ITEMS][batch[TARGET_ROWS] == row].tolist()
            visible = batch[VISIBLE_ITEMS][batch[VISIBLE_ROWS] == row].tolist()
            listed = batch[HISTORY][row, : batch[HISTORY_LENGTH][row]].tolist()
            assert set(targets) <= set(own) and not set(targets) & set(visible)
            assert set(listed) <= set(visible) and len(listed) == min(len(visible), 10)
            if sequential:
                cut = len(visible)
                assert visible == own[:cut] and targets == own[cut : cut + len(targets)]
                assert listed == visible[-10:] and targets
            else:
                assert targets and sorted(targets + visible) == sorted(own)
    least = 2 if sequential else 1  # a user's only item has no other before it
    assert sorted(seen) == (histories.counts() >= least).nonzero().flatten().tolist()


def test_histories_of_single_items_leave_nothing_to_learn_the_next_from():
    single = Histories(np.arange(1, 6), np.arange(1, 6), n_users=6)
    for make in (
        lambda: loader_of(single, next_part, sequential=True),
        lambda: HeldOutByUser(single, 8, "user_id", functools.partial(next_part, single, (0.1, 0.5))),
    ):
        with pytest.raises(DataError, match="no user has 2 training interactions"):
            make()


def test_held_out_items_come_with_the_visible_ones_and_their_ages(histories):
    loader = HeldOutByUser(histories, 8, "user_id", functools.partial(next_part, histories, (0.1, 0.5)))
    users = []
    for batch in loader.epoch(generator_for(1, "cf", 0)):
        assert len(batch["user_id"]) <= 8
        for row, user in enumerate(batch["user_id"].tolist()):
            users.append(user)
            own, at = of_user(histories, user), batch[VISIBLE_ROWS] == row
            visible, targets = batch[VISIBLE_ITEMS][at].tolist(), batch[TARGET_ITEMS][batch[TARGET_ROWS] == row]
            assert visible == own[: len(visible)] and batch[AGE][at].tolist() == list(range(len(visible)))[::-1]
            assert targets.tolist() == own[len(visible) :][: len(targets)] and len(targets)
    assert sorted(users) == (histories.counts() > 1).nonzero().flatten().tolist()


def test_an_epoch_depends_on_seed_and_number_only(histories):
    loader = loader_of(histories)

    def targets(epoch):
        return torch.cat([batch[TARGET_ITEMS] for batch in loader.epoch(generator_for(1, "llm", epoch))])

    first, again, other = targets(0), targets(0), targets(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_codes_are_made_from_what_is_visible(histories):
    masks = []

    def users_of(visible):
        masks.append(visible)
        number = torch.bincount(histories.rows()[visible], minlength=30)
        return number.unsqueeze(1), number.unsqueeze(1).float()

    batches = list(loader_of(histories, most=100, users_of=users_of).epoch(generator_for(1, "llm", 0)))
    assert len(masks) == 1 and int((~masks[0]).sum()) == sum(len(batch[TARGET_ITEMS]) for batch in batches)
    for batch in batches:
        assert torch.equal(batch[USER_CODES][:, 0], batch[HISTORY_LENGTH])
        assert torch.equal(batch[VECTORS][:, 0], batch[HISTORY_LENGTH].float())


def test_pairs_by_user_cover_every_interaction_once(histories):
    loader = PairsByUser(histories, 7, "user_id", "item_id")
    pairs, ages = [], []
    for batch in loader.epoch(generator_for(1, "cf", 0)):
        assert len(batch["user_id"].unique()) <= 7
        pairs += list(zip(batch["user_id"].tolist(), batch["item_id"].tolist()))
        ages += batch[AGE].tolist()
    assert sorted(pairs) == sorted(zip(histories.rows().tolist(), histories.items.tolist()))
    assert sorted(ages) == sorted(histories.ages().tolist())


def test_targets_that_the_decoder_reads_are_of_similar_number_in_a_batch():
    users = np.repeat(np.arange(1, 300), np.random.default_rng(0).integers(2, 40, 299))
    histories = Histories(users, np.arange(len(users)), n_users=300)

    def padded(**keys):
        loader = PromptsByUser(histories, 8, "user_id", lambda g: window_part(histories, 12, g), 10, 3, True, **keys)
        batches = loader.epoch(generator_for(1, "llm", 0))
        numbers = [torch.bincount(batch[TARGET_ROWS], minlength=len(batch["user_id"])) for batch in batches]
        return sum(int(number.max()) * len(number) for number in numbers), int(torch.cat(numbers).sum())

    (grouped, real), (mixed, same) = padded(targets_read=True), padded()
    assert real == same
    assert grouped - real < 0.5 * (mixed - real)
