"""RecBole's NeuMF with the full sort that we give it: the scores of ``predict``, also in blocks and for parts of it."""

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_tokenrec import compat
from recbole_tokenrec.models import neumf


@pytest.mark.unit
@pytest.mark.parametrize("parts", [{}, {"mf_train": False}, {"mlp_train": False}, {"mlp_hidden_size": [24, 16, 8]}])
@pytest.mark.parametrize("block", [1, 4000, 2**19])
def test_full_sort_gives_what_predict_gives(parts, block, build, monkeypatch):
    monkeypatch.setattr(neumf, "_BLOCK", block)
    _, model, *_ = build("NeuMF", dropout_prob=0.4, **parts)
    for parameter in model.parameters():  # RecBole's start gives everybody nearly the same score
        nn.init.normal_(parameter, std=0.5)
    model.eval()
    users, items = torch.tensor([1, 9, 30, 9]), torch.arange(model.n_items)
    pairs = Interaction({"user_id": users.repeat_interleave(len(items)), "item_id": items.repeat(len(users))})
    with torch.no_grad():
        expected = model.predict(pairs)
        torch.testing.assert_close(model.full_sort_predict(Interaction({"user_id": users})), expected)
    assert expected.std() > 0.1


@pytest.mark.unit
def test_a_full_sort_of_recboles_own_is_left_alone(monkeypatch):
    from recbole.model.general_recommender import NeuMF

    own = object()
    monkeypatch.setattr(NeuMF, "full_sort_predict", own)
    assert not compat._neumf()
    assert NeuMF.full_sort_predict is own


@pytest.mark.recipe
def test_it_learns(learn_toy):
    assert learn_toy("NeuMF", learning_rate=0.01)["hit@5"] > 0.5
