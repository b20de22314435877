"""Models side by side: the cosine is the weighted mean of the members', each is trained as alone, validation weighs."""

import pytest
import torch
from recbole.utils import get_trainer
from torch.nn import functional as F

from recbole_tokenrec.api import load
from recbole_tokenrec.collaborative.ensemble import members_of, weightings

TINY = {
    "cf_embedding_size": 8, "cf_epochs": 6, "cf_train_batch_size": 16, "mq_num_codebooks": 2, "mq_codebook_size": 8,
    "mq_codeword_dim": 8, "mq_hidden_size": 16, "mq_epochs": 1, "mq_min_steps": 10, "llm_epochs": 1,
    "llm_train_batch_size": 16, "cf_targets": ["next", "all"], "topk": [5, 20],
}  # fmt: skip


@pytest.mark.unit
def test_cosine_is_the_weighted_mean_of_the_members(build):
    _, model, *_ = build("TokenRec", **TINY)
    ensemble = model.collaborative
    ensemble.mix.set([0.25, 0.75])
    model.refresh_representations()
    tables = [[F.normalize(table, dim=-1) for table in member.forward()] for member in members_of(ensemble)]
    expected = sum(weight * users @ items.T for weight, (users, items) in zip((0.25, 0.75), tables))
    users, items = (F.normalize(table, dim=-1) for table in (model.user_vectors, model.item_vectors))
    torch.testing.assert_close((users @ items.T)[1:, 1:], expected[1:, 1:])


@pytest.mark.unit
@pytest.mark.parametrize("number", [2, 3, 4, 7])
def test_weightings(number):
    choices = weightings(number)
    assert all(len(row) == number and abs(sum(row) - 1) < 1e-9 and min(row) > 0 for row in choices)
    assert [1 / number] * number == choices[0]


@pytest.fixture
def fit(build, tmp_path):
    def run(**keys):
        keys = {**TINY, "checkpoint_dir": str(tmp_path / "saved"), "stage_cache": False, **keys}
        config, model, train, valid, test = build("TokenRec", **keys)
        trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
        trainer.fit(train, valid, verbose=False)
        return trainer, valid

    return run


@pytest.mark.recipe
def test_members_are_trained_as_alone_and_validation_chooses_the_weights(fit):
    trainer, valid = fit()
    model, report = trainer.model, trainer.reports["cf_weights"]
    alone, _ = fit(cf_targets="next")
    first = members_of(model.collaborative)[0].state_dict()
    for name, value in alone.model.collaborative.state_dict().items():
        assert torch.equal(value, first[name]), name
    assert trainer.reports["cf"]["valid"] == alone.reports["cf"]["valid"]

    scores = {}
    for weights in weightings(2):
        model.collaborative.mix.set(weights)
        model.refresh_representations()
        scores[tuple(weights)] = trainer.evaluate_collaborative(valid, "cosine")["ndcg@20"]
    assert report["valid_score"] == max(scores.values()) == scores[tuple(report["weights"])]
    assert trainer.reports["cf_2"]["valid_score"] > 0


@pytest.mark.recipe
def test_the_stage_cache_gives_the_same_numbers(fit):
    first, _ = fit(stage_cache=True)
    again, _ = fit(stage_cache=True)
    names = ("cf", "cf_2", "cf_weights", "user_tokenizer", "item_tokenizer")
    assert not any(first.reports[name]["cached"] for name in names)
    assert all(again.reports[name]["cached"] for name in names)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@pytest.mark.recipe
@pytest.mark.parametrize("fine_tune", [False, True])
def test_new_users_and_items(trained, fine_tune):
    import pandas as pd

    recommender = load(trained("TokenRec", cf_targets=("next", "all")))
    mix = recommender.model.collaborative.mix.weights.clone()
    pairs = [(f"g1u{user}", "g1new") for user in range(6)]
    pairs += [("g1ann", f"g1i{item}") for item in (0, 2, 5)]
    report = recommender.update(pd.DataFrame(pairs, columns=["user_id", "item_id"]), fine_tune=fine_tune)
    assert (report["new_users"], report["new_items"]) == (1, 1)
    assert torch.equal(recommender.model.collaborative.mix.weights, mix)
    assert set(recommender.recommend("g1ann", k=5)["item_id"].str[:2]) == {"g1"}
    frame = recommender.recommend(k=6)
    of_it = set(frame[frame["item_id"] == "g1new"]["user_id"])
    assert of_it and {user[:2] for user in of_it} == {"g1"}
