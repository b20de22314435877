"""SASRecCE and BERT4RecCE: RecBole's layers and scores, nobody sees the future, every item is learnt from."""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_trainer

from recbole_tokenrec.commonkeys import KNOW_MUON
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.models import sequence
from recbole_tokenrec.models.sequence import Windows
from recbole_tokenrec.training.loaders import HISTORY, HISTORY_LENGTH
from recbole_tokenrec.training.muon import Muon

SMALL = {"hidden_size": 16, "inner_size": 32, "MAX_ITEM_LIST_LENGTH": 8, "train_batch_size": 16}


def recboles_scores(name, ours, toy_data):
    """RecBole's model with our weights, asked about our users' training histories."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model

    keys = {k: ours.config[k] for k in ("hidden_size", "inner_size", "n_layers", "n_heads", "hidden_act")}
    keys.update(data_path=str(toy_data), MAX_ITEM_LIST_LENGTH=8, train_neg_sample_args=None, state="ERROR")
    keys.update(load_col={"inter": ["user_id", "item_id", "timestamp"]}, use_gpu=False)
    config = Config(model=name, dataset="toy", config_dict=keys)
    loaders = data_preparation(config, create_dataset(config))
    theirs = get_model(name)(config, loaders[0]._dataset)
    missing, unexpected = theirs.load_state_dict(ours.model.state_dict(), strict=False)
    assert not missing and not unexpected
    return theirs.eval()


class Ours:
    def __init__(self, config, model):
        self.config, self.model = config, model.eval()


@pytest.mark.recipe
@pytest.mark.parametrize(("ours", "recboles"), [("SASRecCE", "SASRec"), ("BERT4RecCE", "BERT4Rec")])
def test_the_same_weights_give_recboles_scores(ours, recboles, build, toy_data):
    config, model, train, _, _ = build(ours, **SMALL)
    torch.manual_seed(0)
    for parameter in model.parameters():  # the start is so small that all scores are alike
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = recboles_scores(recboles, Ours(config, model), toy_data)
    users = torch.tensor([1, 5, 20])
    history, number = model.histories.latest(users, 7 if ours == "BERT4RecCE" else 8)
    if ours == "BERT4RecCE":  # RecBole drops the first place to make room for the mask, whatever stands there
        history, number = torch.cat([torch.full((3, 1), 9), history], dim=1), number + 1
    padded = torch.zeros(3, 8, dtype=torch.long)
    padded[:, : history.shape[1]] = history
    with torch.no_grad():
        expected = theirs.full_sort_predict(Interaction({"item_id_list": padded, "item_length": number}))
        found = model.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
    torch.testing.assert_close(found, expected.view(3, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_no_position_of_sasrec_sees_what_comes_later(build):
    _, model, *_ = build("SASRecCE", **SMALL)
    model.eval()
    items = torch.tensor([[3, 4, 5, 6, 7]])
    changed = torch.tensor([[3, 4, 5, 9, 9]])
    with torch.no_grad():
        a, b = model.states(items, causal=True), model.states(changed, causal=True)
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3])


@pytest.mark.unit
@pytest.mark.parametrize("causal", [True, False])
def test_encoding_sequences_of_like_length_together_changes_no_state(causal, build, monkeypatch):
    """Nor any gradient; a sequence of nothing, as a user without a history is, disturbs no other."""
    _, model, *_ = build("SASRecCE", **SMALL)
    model.eval()
    torch.manual_seed(0)
    number = torch.randint(0, 9, (50,))
    items = torch.randint(1, 40, (50, 8)).masked_fill(torch.arange(8) >= number.unsqueeze(1), 0)
    weight = torch.randn(int(number.sum()), 16)
    found = []
    for together in (50, 7):
        monkeypatch.setattr(sequence, "ENCODED_TOGETHER", together)
        model.zero_grad()
        states = model.states(items, causal)[items > 0]
        (states * weight).sum().backward()
        found.append((states, model.item_embedding.weight.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.unit
def test_sasrecs_loss_is_the_mean_over_all_next_items(build):
    _, model, *_ = build("SASRecCE", **SMALL)
    model.eval()
    history = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    loss = model.calculate_loss(Interaction({HISTORY: history, HISTORY_LENGTH: torch.tensor([4, 2])}))
    pairs = [([3], 4), ([3, 4], 5), ([3, 4, 5], 6), ([7], 8)]
    single = []
    for before, after in pairs:  # each prefix by itself, as RecBole augments
        state = model.states(torch.tensor([before]), causal=True)[:, -1]
        single.append(torch.nn.functional.cross_entropy(model.item_scores(state), torch.tensor([after])))
    torch.testing.assert_close(loss, torch.stack(single).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.unit
def test_bert4rec_masks_items_never_padding_and_at_least_one(build):
    _, model, *_ = build("BERT4RecCE", **SMALL, mask_ratio=0.3, ft_ratio=0.0)
    history = torch.randint(1, 40, (500, 8))
    number = torch.randint(2, 9, (500,))
    history[torch.arange(8) >= number.unsqueeze(1)] = 0
    torch.manual_seed(0)
    masked = model.masked_places(history, number)
    assert not (masked & (history == 0)).any() and masked.any(dim=1).all()
    model.last_ratio = 1.0
    masked = model.masked_places(history, number)
    assert torch.equal(masked.nonzero()[:, 1], number - 1)


@pytest.mark.unit
@pytest.mark.parametrize("overlap", [0, 1])
def test_windows_cover_every_target_once(overlap):
    torch.manual_seed(0)
    users = torch.repeat_interleave(torch.arange(6), torch.tensor([0, 1, 2, 5, 13, 40])).numpy()
    items = torch.arange(1, len(users) + 1).numpy()  # all different: an item names its place
    windows = Windows(Histories(users, items, 6), batch_size=3, length=4 + overlap, overlap=overlap)
    for epoch in range(5):
        windows.generator = torch.Generator().manual_seed(epoch)
        seen = []
        for batch in windows:
            history, number = batch[HISTORY], batch[HISTORY_LENGTH]
            assert (number >= 2).all() and torch.equal((history > 0).sum(dim=1), number)
            first = 1 if overlap else 0
            seen += [item for row, n in zip(history.tolist(), number.tolist()) for item in row[first:n]]
        assert len(seen) == len(set(seen))
        if overlap:  # every item but each history's first is a target exactly once
            firsts = {1, 2, 4, 9, 22}
            assert set(seen) == set(items.tolist()) - firsts
    assert len(windows) >= 1


@pytest.mark.recipe
@pytest.mark.parametrize("name", ["SASRecCE", "BERT4RecCE"])
def test_the_same_seed_gives_the_same_weights(name, build):
    weights = []
    for _ in range(2):
        config, model, train, valid, _ = build(name, **SMALL, epochs=2)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        trainer.fit(train, valid, verbose=False, saved=False)
        weights.append(model.item_embedding.weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.recipe
@pytest.mark.parametrize("name", KNOW_MUON)
def test_muon_trains_every_model_that_is_said_to_know_it(name, build):
    config, model, train, valid, _ = build(name, **SMALL, learner="muon", epochs=8, learning_rate=0.01)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train, valid, verbose=False, saved=False)
    assert type(trainer.optimizer) is Muon
    assert trainer.optimizer.param_groups[1]["muon"] and len(trainer.optimizer.param_groups[1]["params"]) >= 12
    losses = trainer.train_loss_dict
    assert losses[max(losses)] < 0.98 * losses[0]


@pytest.mark.unit
def test_wrong_settings_are_named(build):
    from recbole_tokenrec.errors import ConfigError

    with pytest.raises(ConfigError, match="n_heads: 2 is not allowed; allowed: divisors of hidden_size"):
        build("SASRecCE", hidden_size=15)
    with pytest.raises(ConfigError, match="MAX_ITEM_LIST_LENGTH: 1 is not allowed"):
        build("BERT4RecCE", MAX_ITEM_LIST_LENGTH=1)
