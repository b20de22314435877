"""LightGCNSoftmax learns what comes next: from earlier items only, with an exponent of its own for their age."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.training.loaders import generator_for
from recbole_tokenrec.training.losses import softmax_cosine_loss

NEXT = {"targets": "next", "recency": 0.5, "target_ratio": [0.05, 0.2], "embedding_size": 16}


@pytest.fixture
def ring(tmp_path):
    """Folder with the data set ``toy``: users walk around a ring of 40 items, each from a place of his own."""
    rng = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(120):
        start = rng.integers(40)
        rows += [f"u{user}\ti{(start + step) % 40}\t{step + 1}" for step in range(12)]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.inter").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.recipe
def test_next_targets_find_the_next_item_and_learn_that_new_items_count_more(learn_toy, ring, build):
    keys = {**NEXT, "data_path": str(ring), "epochs": 60, "train_batch_size": 32, "temperature": 0.1}
    ahead = learn_toy("LightGCNSoftmax", **keys)
    assert ahead["hit@5"] > 0.9  # the test item is two steps on; among 40 items chance is one in eight
    behind = learn_toy("LightGCNSoftmax", **{**keys, "targets": "all", "recency": 0.0})
    assert behind["ndcg@5"] < 0.7 * ahead["ndcg@5"]


@pytest.mark.recipe
def test_random_targets_learn_the_toy_groups(learn_toy):
    assert learn_toy("LightGCNSoftmax", **{**NEXT, "targets": "random"})["hit@5"] > 0.8  # chance: one in eight


@pytest.mark.unit
@pytest.mark.parametrize("layers", [1, 2])
def test_a_users_vector_is_folded_in_from_his_history_and_the_exponent_learns(build, layers):
    _, model, *_ = build("LightGCNSoftmax", **NEXT, n_layers=layers)
    users, items = model.forward()
    rows, ages = model.histories.rows(), model.histories.ages()
    weights = (ages + 1.0) ** -0.5
    expected = torch.zeros_like(users)
    for row, item, weight in zip(rows.tolist(), model.histories.items.tolist(), weights.tolist()):
        expected[row] += weight * model.item_inputs()[item].detach()
    torch.testing.assert_close(users.detach(), expected, rtol=1e-4, atol=1e-5)
    batch = next(iter(model.training_batches(16).epoch(generator_for(1, "cf", 0))))
    model.calculate_loss(batch).backward()
    assert model.recency.grad.abs() > 0 and model.item_embedding.weight.grad.abs().sum() > 0


@pytest.mark.unit
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_users_of_a_batch_are_what_propagation_over_all_users_makes_of_them(build, layers, monkeypatch):
    """targets: all. Without a user table a step costs its own users' items, not everybody's."""
    keys = {"targets": "all", "user_table": False, "recency": 0.5, "target_weight": 1.0, "embedding_size": 16}
    _, model, *_ = build("LightGCNSoftmax", **keys, n_layers=layers, precision="fp32")  # both ways to the digit
    batch = next(iter(model.training_batches(16).epoch(generator_for(1, "cf", 0))))
    present, rows = batch[model.USER_ID].unique(return_inverse=True)
    users, items = model.forward()
    expected = softmax_cosine_loss(users[present], items, rows, batch[model.ITEM_ID], model.temperature)
    expected.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(model, "forward", None)
    loss = model.calculate_loss(batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert len(gradients) == 2 and all(one.abs().sum() > 0 for one in gradients.values())
    for name, one in model.named_parameters():
        torch.testing.assert_close(one.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.unit
def test_the_loss_does_not_depend_on_what_comes_after_the_targets(build):
    _, model, *_ = build("LightGCNSoftmax", **NEXT)
    batch = next(iter(model.training_batches(64).epoch(generator_for(1, "cf", 0))))
    shown = {(row, item) for row, item in zip(batch["visible_rows"].tolist(), batch["visible_items"].tolist())}
    asked = {(row, item) for row, item in zip(batch["target_rows"].tolist(), batch["target_items"].tolist())}
    assert asked and not shown & asked
    for row, user in enumerate(batch["user_id"].tolist()):
        own = model.histories.of_user(user).tolist()
        cut = sum(r == row for r, _ in shown)
        targets = sum(r == row for r, _ in asked)
        assert {item for r, item in shown if r == row} == set(own[:cut])
        assert {item for r, item in asked if r == row} == set(own[cut : cut + targets])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"targets": "later"}, "targets: 'later' is not allowed; allowed: one of all, next, random"),
        ({"target_ratio": [0.5]}, "target_ratio"),
        ({"target_ratio": ["a", "b"]}, "target_ratio"),
        ({"user_table": True}, "targets: 'next' needs user_table: false"),
        ({"n_layers": 0}, "targets: 'next' needs user_table: false and n_layers of at least 1"),
    ],
)
def test_wrong_keys(build, keys, text):
    with pytest.raises(ConfigError, match=text):
        build("LightGCNSoftmax", **{**NEXT, **keys})


@pytest.mark.unit
@pytest.mark.parametrize("targets", ["all", "next"])
def test_scores_are_those_of_the_weights_loaded_last(build, targets):
    """RecBole's trainer loads the best epoch's weights after it has evaluated the last epoch's."""
    _, model, train, *_ = build("LightGCNSoftmax", **{**NEXT, "targets": targets})
    model.eval()
    users = Interaction({"user_id": torch.arange(1, 5)})
    before = model.full_sort_predict(users)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["item_embedding.weight"] = torch.randn_like(state["item_embedding.weight"])
    model.load_state_dict(state)
    assert not torch.allclose(model.full_sort_predict(users), before, atol=1e-2)
