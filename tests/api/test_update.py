"""New users, items and interactions: who gets what, what stays as it was, and nothing half done."""

import pandas as pd
import pytest
import torch

import recbole_tokenrec
from recbole_tokenrec.api import growth
from recbole_tokenrec.api.recommender import UnknownItemsWarning
from recbole_tokenrec.errors import ConfigError, DataError

pytestmark = pytest.mark.recipe


def interactions(pairs):
    return pd.DataFrame(pairs, columns=["user_id", "item_id"])


# A new item of group 1, taken by half of that group's users and by two new ones who took other items of it.
NEW_ITEM = [(f"g1u{user}", "g1new") for user in range(6)]
NEW_USERS = [(user, f"g1i{item}") for user in ("g1ann", "g1bob") for item in (0, 2, 5)]
NEW_USERS += [(user, "g1new") for user in ("g1ann", "g1bob")]


def frozen_bytes(recommender):
    model = recommender.model
    parts = {"llm": model.llm, "users": model.user_tokenizer, "items": model.item_tokenizer}
    return {f"{n}.{k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}


@pytest.mark.parametrize("fine_tune", [False, True])
def test_new_users_and_items(recommender, fine_tune):
    before = frozen_bytes(recommender)
    report = recommender.update(interactions(NEW_ITEM + NEW_USERS), fine_tune=fine_tune)
    assert {key: report[key] for key in ("interactions", "new_users", "new_items", "updated_users", "left_out")} == {
        "interactions": 14, "new_users": 2, "new_items": 1, "updated_users": 6, "left_out": [],
    }  # fmt: skip
    assert ("drift" in report) == fine_tune
    if fine_tune:
        assert 0.5 < report["drift"] < 0.99999

    # users of that taste who do not have it get it, and others do not
    frame = recommender.recommend(k=6)
    of_it = set(frame[frame["item_id"] == "g1new"]["user_id"])
    assert of_it and {user[:2] for user in of_it} == {"g1"} and len(of_it) >= 5
    assert not of_it & {f"g1u{user}" for user in range(6)}  # seen

    new = recommender.recommend(["g1ann", "g1bob"], k=5)
    assert set(new["kind"]) == {"hot"} and set(new["item_id"].str[:2]) == {"g1"}
    assert recommender.history("g1ann") == ["g1i0", "g1i2", "g1i5", "g1new"]
    for key, value in frozen_bytes(recommender).items():
        assert torch.equal(value[: len(before[key])] if key == "llm.item_offset.weight" else value, before[key]), key


def test_old_scores_stay(recommender):
    """Users without new interactions: tokens and item vectors to the last bit, scores up to a product's rounding."""
    users = [user for user in recommender.users if user not in dict(NEW_ITEM)]
    old_model, old_data = recommender.model, recommender.data
    before = recommender.recommend(users, k=60, exclude_seen=False)
    recommender.update(interactions(NEW_ITEM + NEW_USERS))
    after = recommender.recommend(users, k=60, exclude_seen=False)
    assert len(before) == 42 * 48 and len(after) == 42 * 49
    old = after[after["item_id"] != "g1new"]
    for column in ("user_id", "item_id"):
        assert old[column].tolist() == before[column].tolist()
    assert old["score"].tolist() == pytest.approx(before["score"].tolist(), abs=1e-6)
    model = recommender.model
    assert torch.equal(model.item_vectors[: old_data.item_num], old_model.item_vectors)
    assert torch.equal(model.item_codes[: old_data.item_num], old_model.item_codes)
    numbers = torch.tensor([old_data.user_numbers[user] for user in users])
    assert torch.equal(model.user_codes[numbers], old_model.user_codes[numbers])


def test_new_interactions_count_at_once(recommender):
    taken = recommender.recommend("g0u0", k=2)["item_id"].tolist()
    recommender.update(interactions([("g0u0", item) for item in taken]))
    assert recommender.history("g0u0")[-2:] == taken
    assert not set(taken) & set(recommender.recommend("g0u0", k=40)["item_id"])
    # the same as the user would get with this history as a stranger
    strange = recommender.recommend(histories={"x": recommender.history("g0u0")}, k=10)
    assert recommender.recommend("g0u0", k=10)["item_id"].tolist() == strange["item_id"].tolist()


def test_update_in_two_steps_and_through_a_checkpoint(recommender, tmp_path):
    recommender.update(interactions(NEW_ITEM))
    recommender.save(tmp_path / "grown.pth")
    again = recbole_tokenrec.load(tmp_path / "grown.pth")
    pd.testing.assert_frame_equal(again.recommend(k=10), recommender.recommend(k=10))
    for each in (recommender, again):
        report = each.update(interactions([*NEW_USERS, ("g1u7", "g1new2"), ("g1u8", "g1new2")]))
        assert (report["new_users"], report["new_items"]) == (2, 1)
    pd.testing.assert_frame_equal(again.recommend(k=10), recommender.recommend(k=10))


def test_items_that_only_new_users_took_follow_them(recommender):
    chain = [("a", "g2i1"), ("a", "g2i2"), ("a", "g2x"), ("b", "g2x"), ("b", "g2y"), ("c", "lost"), ("c", "lost2")]
    with pytest.warns(UnknownItemsWarning, match="they were left out: lost, lost2"):
        report = recommender.update(interactions(chain))
    assert report["left_out"] == ["lost", "lost2"]
    assert (report["new_users"], report["new_items"], report["interactions"]) == (2, 2, 5)
    frame = recommender.recommend([f"g2u{user}" for user in range(12)] + ["b"], k=8)
    assert {"g2x", "g2y"} <= set(frame["item_id"])
    assert set(frame[frame["user_id"] == "b"]["item_id"].str[:2][:3]) == {"g2"}
    assert set(recommender.recommend("c")["kind"]) == {"cold"}


@pytest.mark.parametrize(
    ("frame", "error", "text"),
    [
        (interactions([]), DataError, "there are none"),
        (interactions([("a", "new")]), DataError, "every item is new"),
        (interactions([("a", None)]), DataError, "None is not an id|nan is not an id"),
        (interactions([("a\nb", "g0i1")]), DataError, "holds a line break"),
        (pd.DataFrame({"user_id": ["a"]}), DataError, "no column 'item_id'"),
        ([("a", "g0i1")], DataError, "list is not allowed; allowed: a pandas data frame"),
    ],
)
def test_wrong_updates(recommender, frame, error, text):
    with pytest.raises(error, match=text):
        recommender.update(frame)


def test_an_update_that_fails_leaves_the_old_state(recommender, monkeypatch):
    before = recommender.recommend(k=10)
    scorer, codes = recommender._scorer, recommender.model.user_codes.clone()

    def fails(*args, **keys):
        raise RuntimeError("out of memory")

    for place in ("fold_in", "_placed_items", "_train_on"):
        with monkeypatch.context() as patch:
            patch.setattr(growth, place, fails)
            with pytest.raises(RuntimeError, match="out of memory"):
                recommender.update(interactions(NEW_ITEM + NEW_USERS), fine_tune=True)
        assert recommender._scorer is scorer and torch.equal(recommender.model.user_codes, codes)
        pd.testing.assert_frame_equal(recommender.recommend(k=10), before)
    assert recommender.update(interactions(NEW_ITEM))["new_items"] == 1  # and works again


def test_lightgcn_with_its_own_loss_folds_in(trained):
    own = {"cf_loss": "own", "cf_user_table": True, "llm_user_tokens": "all", "prompt_decoder_items": 0}
    recommender = recbole_tokenrec.load(trained(**own, cf_train_batch_size=64, cf_epochs=60))
    report = recommender.update(interactions(NEW_ITEM + NEW_USERS))
    assert (report["new_users"], report["new_items"]) == (2, 1)
    frame = recommender.recommend(["g1ann", "g1bob"], k=4)
    assert (frame["item_id"].str[:2] == "g1").mean() >= 0.75
    with pytest.raises(ConfigError, match="fine_tune: needs a model trained with cf_loss: softmax_cosine"):
        recommender.update(interactions(NEW_ITEM), fine_tune=True)


@pytest.mark.parametrize("backend", ["faiss", "lancedb"])
def test_other_indexes_grow_too(trained, backend, tmp_path):
    pytest.importorskip(backend)
    options = {"folder": tmp_path / "db"} if backend == "lancedb" else {}
    recommender = recbole_tokenrec.load(trained(), index=backend, **options)
    recommender.update(interactions(NEW_ITEM))
    exact = recbole_tokenrec.load(trained())
    exact.update(interactions(NEW_ITEM))
    assert recommender.recommend(k=5)["item_id"].tolist() == exact.recommend(k=5)["item_id"].tolist()


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "three", True])
def test_fine_tuning_takes_whole_epochs(recommender, epochs):
    with pytest.raises(ConfigError, match=r"epochs: .* is not allowed; allowed: int in \[1, inf\)"):
        recommender.update(interactions(NEW_ITEM), fine_tune=True, epochs=epochs)
