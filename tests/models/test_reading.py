"""Other histories at evaluation: what changes is what the users are, and it changes back."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_model

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.history import READERS
from recbole_tokenrec.registry import MODELS

SMALL = {
    "cf_embedding_size": 8, "mq_num_codebooks": 2, "mq_user_num_codebooks": 2, "mq_codebook_size": 8,
    "mq_codeword_dim": 8, "hidden_size": 8, "inner_size": 8, "embedding_size": 8,
}  # fmt: skip


def scores(model, users):
    with torch.no_grad():
        return model.full_sort_predict(Interaction({"user_id": users})).view(len(users), -1).clone()


@pytest.fixture
def opened(build):
    """``opened(name, **keys)``: an untrained model at evaluation, and histories with a new item of users 3 and 7."""

    def run(name, **keys):
        _, model, *_ = build(name, **{**SMALL, **keys})
        model.eval()
        if name == "TokenRec":
            model.user_codes.copy_(model.user_tokenizer.encode_all(model.tokenizer_inputs(model.user_vectors)))
        users = np.array([3, 7])
        known = [set(model.histories.of_user(int(user)).tolist()) for user in users]
        new = np.array([next(item for item in range(1, model.n_items) if item not in seen) for seen in known])
        return model, model.histories.extended(users, new)

    return run


@pytest.mark.unit
@pytest.mark.parametrize("name", sorted(READERS))
def test_only_users_who_have_more_change_and_only_while_it_lasts(name, opened):
    model, longer = opened(name)
    users, state = torch.tensor([3, 5, 7]), {key: value.clone() for key, value in model.state_dict().items()}
    before = scores(model, users)
    with model.reading(longer):
        within = scores(model, users)
    assert not torch.equal(within[0], before[0]) and not torch.equal(within[2], before[2])
    torch.testing.assert_close(within[1], before[1])
    torch.testing.assert_close(scores(model, users), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with model.reading(model.histories):
        torch.testing.assert_close(scores(model, users), before)


@pytest.mark.unit
def test_tokens_and_vectors_are_those_of_a_new_user_with_that_history(opened):
    model, longer = opened("TokenRec")
    with model.reading(longer):
        vectors, codes = model.user_vectors.clone(), model.user_codes.clone()
    assert not torch.equal(vectors[3], model.user_vectors[3])
    rows, places = longer.places(torch.tensor([3, 7]))
    expected = model.collaborative.fold_in(rows, longer.items[places], longer.ages()[places], 2)
    torch.testing.assert_close(vectors[[3, 7]], expected)
    assert torch.equal(codes[[3, 7]], model.user_tokenizer.encode_all(model.tokenizer_inputs(expected)))
    others = torch.tensor([user for user in range(model.n_users) if user not in (3, 7)])
    assert torch.equal(vectors[others], model.user_vectors[others])
    assert torch.equal(codes[others], model.user_codes[others])


@pytest.mark.unit
def test_an_error_within_leaves_the_model_as_it_was(opened):
    model, longer = opened("TokenRec")
    kept = model.user_vectors
    with pytest.raises(KeyError), model.reading(longer):
        raise KeyError
    assert model.user_vectors is kept and model.evaluation_histories is model.histories


@pytest.mark.unit
def test_users_of_a_trained_table_keep_their_tokens_or_are_refused(opened):
    model, longer = opened("TokenRec", preset="paper", llm_backbone="t5-scratch-tiny")
    vectors = model.user_vectors.clone()
    with model.reading(longer):
        assert torch.equal(model.user_vectors, vectors) and model.evaluation_histories is longer
    model, longer = opened("LightGCNSoftmax", user_table=True)
    with pytest.raises(ConfigError, match="user_table: True"), model.reading(longer):
        pass


@pytest.mark.unit
def test_the_list_of_models_that_can_is_true():
    assert {name for name in MODELS if hasattr(get_model(name), "reading")} == READERS
