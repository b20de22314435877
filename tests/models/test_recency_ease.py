"""RecencyEASE: EASE itself at exponent 0, and the newest items count most above it."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.errors import ConfigError


@pytest.mark.unit
def test_without_recency_it_is_recboles_ease(build):
    _, ours, *_ = build("RecencyEASE", reg_weight=20.0, recency=0.0)
    split = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
    _, theirs, *_ = build("EASE", reg_weight=20.0, eval_args=split)
    users = Interaction({"user_id": torch.tensor([1, 9, 30])})
    expected = torch.as_tensor(theirs.full_sort_predict(users)).view(3, -1).float()
    torch.testing.assert_close(ours.full_sort_predict(users).view(3, -1)[:, 1:], expected[:, 1:], rtol=1e-3, atol=1e-4)


@pytest.mark.unit
def test_weights_follow_age(build):
    _, model, *_ = build("RecencyEASE", reg_weight=20.0, recency=1.0)
    users = torch.tensor([3, 7])
    scores = model.full_sort_predict(Interaction({"user_id": users})).view(2, -1)
    for user, row in zip(users, scores):
        history = model.histories.of_user(int(user))
        weights = 1 / torch.arange(len(history), 0, -1).float()
        torch.testing.assert_close(row, weights @ model.item_similarity[history])


@pytest.mark.unit
@pytest.mark.parametrize(("key", "value"), [("reg_weight", 0), ("recency", -1.0), ("reg_weight", "much")])
def test_wrong_settings_are_named(key, value, build):
    with pytest.raises(ConfigError, match=f"{key}: .* is not allowed"):
        build("RecencyEASE", **{key: value})
