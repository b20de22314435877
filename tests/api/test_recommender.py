"""Recommendations for raw ids: right items, right ids, and equal to RecBole's own scores."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

import recbole_tokenrec
from recbole_tokenrec.api.loading import find
from recbole_tokenrec.api.recommender import UnknownItemsWarning
from recbole_tokenrec.checkpoints import load_data_and_model
from recbole_tokenrec.errors import CheckpointError, ConfigError, DataError

pytestmark = pytest.mark.recipe
COLUMNS = ["user_id", "item_id", "rank", "score", "kind"]


def group_share(frame):
    """Share of the rows whose item is of the user's own group."""
    return float((frame["item_id"].str[:2] == frame["user_id"].str[:2]).mean())


def test_hot_users_get_what_full_sort_predict_ranks_first(recommender):
    users = ["g2u5", "g0u0", "g3u11"]
    frame = recommender.recommend(users, k=4)
    assert list(frame.columns) == COLUMNS
    assert frame["user_id"].tolist() == [user for user in users for _ in range(4)]
    assert frame["rank"].tolist() == [1, 2, 3, 4] * 3 and set(frame["kind"]) == {"hot"}
    assert group_share(frame) > 0.9

    data, model = recommender.data, recommender.model
    numbers = torch.tensor([data.user_numbers[user] for user in users])
    scores = model.full_sort_predict(Interaction({"user_id": numbers})).view(3, -1)
    scores[:, 0] = -torch.inf
    for row, user in enumerate(users):
        scores[row, [data.item_numbers[item] for item in recommender.history(user)]] = -torch.inf
    value, item = scores.topk(4)
    assert frame["item_id"].tolist() == [data.items[i] for i in item.flatten().tolist()]
    np.testing.assert_allclose(frame["score"], value.flatten().numpy(), atol=1e-6)


def test_seen_items_are_left_out_or_not(recommender):
    seen = set(recommender.history("g1u3"))
    assert len(seen) == 7  # nine, less validation and test
    assert not seen & set(recommender.recommend("g1u3", k=48)["item_id"])
    assert len(recommender.recommend("g1u3", k=48)) == 48 - 7
    assert seen < set(recommender.recommend("g1u3", k=48, exclude_seen=False)["item_id"])


def test_who_took_everything_is_named_and_nobody_is_nobody(recommender):
    frame = recommender.recommend(histories={"x": recommender.items, "y": ["g0i1"]}, k=3)
    assert set(frame["user_id"]) == {"y"} and frame.attrs["without_items"] == {"x": "warm"}
    empty = recommender.recommend(histories={}, k=3)  # and not everybody whom the model knows
    assert list(empty.columns) == COLUMNS and len(empty) == 0


def test_without_users_everybody_is_served(recommender):
    frame = recommender.recommend(k=1)
    assert frame["user_id"].tolist() == recommender.users and len(frame) == 48
    assert group_share(frame) > 0.9


def test_a_known_history_folds_in_to_the_known_user(recommender):
    """Warm equals hot: the user's own representation is a function of his history, and so are tokens and prompt."""
    hot = recommender.recommend("g1u3", k=10)
    warm = recommender.recommend(histories={"somebody": recommender.history("g1u3")}, k=10)
    assert set(warm["kind"]) == {"warm"} and set(warm["user_id"]) == {"somebody"}
    assert warm["item_id"].tolist() == hot["item_id"].tolist()
    np.testing.assert_allclose(warm["score"], hot["score"], atol=1e-5)


def test_histories_in_every_form(recommender):
    items = ["g0i1", "g0i4", "g0i7"]
    expected = recommender.recommend(histories={"x": items}, k=3)["item_id"].tolist()
    frame = pd.DataFrame({"user_id": ["x"] * 3, "item_id": items[::-1], "timestamp": [3, 2, 1]})
    typed = frame.rename(columns=dict(zip(frame.columns, ("user_id:token", "item_id:token", "timestamp:float"))))
    for histories in (items, np.array(items), pd.Series(items), frame, typed):
        assert recommender.recommend(histories=histories, k=3)["item_id"].tolist() == expected
    assert all(item.startswith("g0") for item in expected)
    # a history given for a known user is used instead of his own
    replaced = recommender.recommend("g3u1", {"g3u1": items}, k=3)
    assert replaced["item_id"].tolist() == expected and set(replaced["kind"]) == {"warm"}


def test_cold_users_get_the_most_popular_items_and_are_told(recommender):
    data = recommender.data
    frame = recommender.recommend(["nobody", "g0u1", "nil"], k=5)
    assert frame["kind"].tolist() == ["cold"] * 5 + ["hot"] * 5 + ["cold"] * 5
    cold = frame[frame["user_id"] == "nobody"]
    counts = torch.bincount(data.histories.items, minlength=data.item_num)[1:]
    assert cold["score"].tolist() == pytest.approx((counts.sort(descending=True).values[:5] / 48).tolist())


def test_unknown_items_are_reported(recommender):
    with pytest.warns(UnknownItemsWarning, match="of user 'x', they were left out: g9i9, 17"):
        frame = recommender.recommend(histories={"x": ["g9i9", "g0i1", 17, "g0i2"], "y": ["g1i1"]}, k=3)
    assert frame.attrs["unknown_items"] == {"x": ["g9i9", "17"]}
    assert frame["kind"].tolist() == ["warm"] * 6 and frame["item_id"].iloc[0].startswith("g0")
    with pytest.warns(UnknownItemsWarning):  # nothing known is left: a cold user
        assert set(recommender.recommend(histories=["g9i9"])["kind"]) == {"cold"}


@pytest.mark.parametrize("items", ["50", None, 50, {"g0i1": 1}])
def test_items_of_a_history_are_a_sequence_never_the_letters_of_a_text(recommender, items):
    with pytest.raises(DataError, match=r"histories: user 'x' has .* not allowed; allowed: a sequence of items"):
        recommender.recommend(histories={"x": items})


def test_candidates(recommender):
    chosen = ["g0i1", "g2i2", "g2i3", "g1i1"]
    with pytest.warns(UnknownItemsWarning, match="these candidates, they were left out: what"):
        frame = recommender.recommend(["g2u1", "nobody"], k=10, exclude_seen=False, candidates=[*chosen, "what"])
    assert frame.attrs["unknown_candidates"] == ["what"]
    for user in ("g2u1", "nobody"):
        assert sorted(frame[frame["user_id"] == user]["item_id"]) == sorted(chosen)
    assert {"g2i2", "g2i3"} == set(frame[frame["user_id"] == "g2u1"]["item_id"][:2])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"k": 0}, ConfigError, "k: 0 is not allowed"),
        ({"k": 2.5}, ConfigError, "k: 2.5 is not allowed"),
        ({"users": [None]}, DataError, "None is not an id"),
        ({"users": {"a": 1}}, DataError, "users: dict is not allowed"),
        ({"users": [float("nan")]}, DataError, "nan is not an id"),
        ({"histories": "g0i1"}, DataError, "histories: str is not allowed"),
        ({"histories": [["g0i1"]]}, DataError, "is not an id"),
        ({"histories": pd.DataFrame({"item_id": ["g0i1"]})}, DataError, "no column 'user_id'; there are: item_id"),
        ({"users": ["g0u1"], "candidates": ["a", "b"]}, DataError, "knows none of them"),
    ],
)
def test_wrong_questions(recommender, arguments, error, text):
    with pytest.raises(error, match=text):
        recommender.recommend(**arguments)


def test_titles_and_histories(recommender):
    assert recommender.title("g1i7") == "Film 7 of 1" and recommender.title("what") == ""
    assert recommender.history("nobody") == [] and len(recommender.items) == 48


@pytest.mark.parametrize("backend", ["faiss", "lancedb"])
def test_other_indexes_find_the_same(trained, recommender, backend, tmp_path):
    pytest.importorskip(backend)
    options = {"folder": tmp_path / "db"} if backend == "lancedb" else {}
    other = recbole_tokenrec.load(trained(), index=backend, **options)
    left, right = (r.recommend(k=5) for r in (recommender, other))
    assert left["item_id"].tolist() == right["item_id"].tolist()
    np.testing.assert_allclose(left["score"], right["score"], atol=1e-5)


# ---- other models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LightGCNSoftmax", "BPR", "SASRecCE", "SASRec", "CID", "FM"])
def test_every_kind_of_model_recommends_for_hot_users(trained, name):
    file = trained(name)
    recommender = recbole_tokenrec.load(file)
    assert recommender.name == name
    users = ["g2u5", "g0u0"]
    frame = recommender.recommend([*users, "nobody"], k=5)
    for user in users:
        own = frame[frame["user_id"] == user]
        assert set(own["kind"]) == {"hot"} and own["rank"].tolist() == list(range(1, len(own) + 1))
        assert not set(own["item_id"]) & set(recommender.history(user))
        assert own["score"].is_monotonic_decreasing
    assert set(frame[frame["user_id"] == "nobody"]["kind"]) == {"cold"}
    if name != "CID":  # two epochs teach a language model nothing
        assert group_share(frame[frame["kind"] == "hot"]) > 0.6
    if name in ("CID", "SASRec", "FM"):  # scored from more than a user's number
        return
    _, model, _, train_data, _, _ = load_data_and_model(file)
    dataset = train_data._dataset
    numbers = torch.tensor(dataset.token2id("user_id", users))
    scores = model.eval().full_sort_predict(Interaction({"user_id": numbers})).view(2, -1)
    for user, row in zip(users, scores):
        own = frame[frame["user_id"] == user]
        items = dataset.token2id("item_id", own["item_id"].to_numpy(dtype=str))
        np.testing.assert_allclose(own["score"].to_numpy(dtype=float), row[items].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["LightGCNSoftmax", "SASRecCE"])
def test_models_of_histories_take_new_users(trained, name):
    recommender = recbole_tokenrec.load(trained(name))
    hot = recommender.recommend("g1u3", k=6)
    warm = recommender.recommend(histories={"new": recommender.history("g1u3")}, k=6)
    assert warm["item_id"].tolist() == hot["item_id"].tolist()


def test_a_model_says_what_it_cannot(trained):
    recommender = recbole_tokenrec.load(trained("BPR"))
    with pytest.raises(ConfigError, match="BPR recommends for users it was trained on.* for 'new'.*TokenRec"):
        recommender.recommend(histories={"new": ["g0i1"]})
    with pytest.raises(ConfigError, match="update: model BPR cannot take in"):
        recommender.update(pd.DataFrame({"user_id": ["a"], "item_id": ["g0i1"]}))
    with pytest.raises(ConfigError, match="export: model BPR has no ID tokens"):
        recommender.export("somewhere")


def test_folders_and_files_that_are_no_model(trained, tmp_path):
    from pathlib import Path

    assert recbole_tokenrec.load(Path(trained()).parent).name == "TokenRec"  # one checkpoint in the folder
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read|not a checkpoint"):
        recbole_tokenrec.load(tmp_path)
    (tmp_path / "b.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="a.pth, b.pth"):
        recbole_tokenrec.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        recbole_tokenrec.load(tmp_path / "nothing.pth")


def test_recbole_checkpoint_whose_data_moved(trained, tmp_path):
    import shutil
    from pathlib import Path

    file = Path(trained("BPR"))
    expected = recbole_tokenrec.load(file).recommend("g0u0")["item_id"].tolist()
    data = file.parent.parent / "data"
    moved = tmp_path / "moved"
    shutil.move(data, moved)
    try:
        with pytest.raises(DataError, match="toy.inter does not exist"):
            recbole_tokenrec.load(file)
        assert recbole_tokenrec.load(file, data_path=moved).recommend("g0u0")["item_id"].tolist() == expected
    finally:
        shutil.move(moved, data)


def test_a_history_beside_a_user_is_his(recommender):
    """And of nobody else: it was dropped, and a newcomer got what is popular."""
    frame = recommender.recommend("newcomer", histories=["g2i1", "g2i3"], k=3)
    assert set(frame["user_id"]) == {"newcomer"} and set(frame["kind"]) == {"warm"}
    assert set(frame["item_id"].str[:2]) == {"g2"}
    known = recommender.recommend("g0u1", histories=["g2i1", "g2i3"], k=3)
    assert known["item_id"].tolist() == frame["item_id"].tolist()
    both = recommender.recommend(["g0u1", "x"], histories={"x": ["g2i1"], "not asked": ["g1i1"]}, k=2)
    assert both.groupby("user_id")["kind"].first().to_dict() == {"g0u1": "hot", "x": "warm"}
    with pytest.raises(DataError, match="the items of one user, for 2 users"):
        recommender.recommend(["a", "b"], histories=["g2i1"])
    with pytest.raises(DataError, match="histories: of 'gOu1', who is none of users"):
        recommender.recommend("g0u1", histories={"gOu1": ["g2i1"]})


def test_generative_models_give_as_many_as_asked_for_among_the_candidates(trained):
    recommender = recbole_tokenrec.load(trained("CID"))
    users = ["g0u0", "g1u1", "g2u2"]
    assert recommender.recommend(users, k=38).groupby("user_id").size().tolist() == [38, 38, 38]
    chosen = recommender.history("g0u0") + ["g3i1", "g3i2"]
    few = recommender.recommend(users, k=4, candidates=chosen, exclude_seen=False)
    assert few.groupby("user_id").size().tolist() == [4, 4, 4] and set(few["item_id"]) <= set(chosen)
    unseen = recommender.recommend("g0u0", k=9, candidates=chosen)
    assert sorted(unseen["item_id"]) == sorted(set(chosen) - set(recommender.history("g0u0")))
    model, data = recommender.model, recommender.data
    row = few[few["user_id"] == "g1u1"].iloc[0]
    pair = {"user_id": [data.user_numbers["g1u1"]], "item_id": [data.item_numbers[row["item_id"]]]}
    score = model.predict(Interaction({key: torch.tensor(value) for key, value in pair.items()}))
    assert row["score"] == pytest.approx(float(score), abs=1e-4)


def test_two_threads_ask_a_generative_model(trained):
    recommender = recbole_tokenrec.load(trained("CID"))
    users = recommender.users[:12]
    expected = [recommender.recommend(user, k=3) for user in users]
    with ThreadPoolExecutor(2) as pool:
        for frame, other in zip(pool.map(lambda user: recommender.recommend(user, k=3), users), expected):
            assert frame.equals(other)


def test_a_sequential_model_of_a_split_by_ratio(trained):
    """A user has several test rows there: the one with the longest history counts."""
    split = {"split": {"RS": [0.4, 0.2, 0.4]}, "order": "TO", "group_by": "user", "mode": "full"}
    recommender = recbole_tokenrec.load(trained("SASRec", epochs=2, eval_args=str(split)))
    frame = recommender.recommend(["g0u0", "g3u1"], k=4)
    assert frame.groupby("user_id").size().tolist() == [4, 4] and len(recommender.history("g0u0")) == 8


def test_a_folder_of_several_runs_is_that_of_the_newest(trained, tmp_path):
    checkpoint = Path(trained())
    for name in ("first.pth", "second.pth"):
        shutil.copy(checkpoint, tmp_path / name)
    with pytest.raises(CheckpointError, match="nor one checkpoint .*first.pth, second.pth"):
        find(tmp_path)
    for number, name in enumerate(("first.pth", "second.pth")):
        file = tmp_path / f"toy-TokenRec-{number}.json"
        file.write_text(json.dumps({"models": [{"checkpoint": f"/elsewhere/{name}"}]}))
        os.utime(file, (number + 1, number + 1))
    assert find(tmp_path).name == "second.pth"
    (tmp_path / "toy-BPR-TokenRec.json").write_text(json.dumps({"models": [{"checkpoint": "a"}, {"checkpoint": "b"}]}))
    with pytest.raises(CheckpointError, match="name the file"):
        find(tmp_path)
