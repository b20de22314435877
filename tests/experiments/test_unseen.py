"""Users who are left out: what of the training they are in, by either rule, and that they are served all the same."""

import json

import numpy as np
import pytest
import torch

from recbole_tokenrec.experiments import generalize, unseen
from recbole_tokenrec.experiments.unseen import left_out_users
from recbole_tokenrec.models.tokenrec import COLLABORATIVE
from recbole_tokenrec.training.trainer import TokenRecTrainer
from tests.experiments.fast import FAST

pytest.importorskip("matplotlib")


@pytest.mark.recipe
def test_unseen_users_are_in_no_stage_and_get_recommendations_all_the_same(experiment, monkeypatch):
    seen = {}
    original = unseen.fold_in

    def spy(model, histories, users):
        seen["trained on"] = model.histories.counts()[users].sum().item()
        seen["left out"] = users
        before = {key: value.clone() for key, value in model.state_dict().items()}
        original(model, histories, users)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        seen["changed"] = changed

    fit = TokenRecTrainer.fit

    def watched(self, train, valid=None, **options):
        seen["validated by"] = valid.uid_list
        return fit(self, train, valid, **options)

    monkeypatch.setattr(unseen, "fold_in", spy)
    monkeypatch.setattr(TokenRecTrainer, "fit", watched)
    fast = [a for a in FAST if not a.startswith("--cf_epochs")] + ["--cf_epochs=20"]
    code, result, _ = experiment("generalize", "--share", "0.2", *fast, folder="tuned-least")
    assert code == 0
    assert seen["trained on"] == 0
    assert len(seen["validated by"]) == 38 and not torch.isin(seen["validated by"], seen["left out"]).any()
    assert seen["changed"] == {"user_vectors", "user_codes"}  # tables, tokenizers and language model are untouched
    assert result["users"] == 10
    # the toy's answer: an item of his own group, which popularity finds once in four times
    assert result["figures"]["unseen users"]["test"]["hit@20"]["mean"] > 0.8
    left_out, same = (
        sum(result["figures"][label][split]["ndcg@20"]["mean"] for split in ("valid", "test")) / 2
        for label in ("unseen users", generalize.TRAINED_ON)
    )
    assert result["paired"]["difference"] == pytest.approx(left_out - same)
    # all of the toy's users have as many items
    assert result["figures"]["seen users of as many items"] == result["figures"]["seen users"]
    code, alone, folder = experiment("generalize", "--share", "0.2", "--against", "seen", *fast, folder="tuned-least")
    assert code == 0 and alone["paired"] is None
    assert generalize.TRAINED_ON not in (folder / "result.md").read_text()
    assert alone["figures"] == {
        label: figure for label, figure in result["figures"].items() if label != generalize.TRAINED_ON
    }


@pytest.mark.recipe
def test_by_the_papers_rule_the_collaborative_stage_alone_knows_everybody(experiment, monkeypatch):
    seen = []  # of each stage that is trained: name, model, training items and vectors of users, its cache entry
    restored = TokenRecTrainer._trained_or_restored

    def watched(self, stage, cache, callback_fn):
        report, model = restored(self, stage, cache, callback_fn), self.model
        seen.append((stage.name, model, model.histories.counts(), model.user_vectors.clone(), cache.path(stage).name))
        return report

    monkeypatch.setattr(TokenRecTrainer, "_trained_or_restored", watched)
    arguments = ["generalize", "--share", "0.2", "--against", "seen", *FAST]
    code, result, folder = experiment(*arguments, "--update", "collaborative", folder="tuned-least-updated")
    assert code == 0 and result["update"] == "collaborative"
    assert "the collaborative stage is trained on everybody, as in the paper" in (folder / "result.md").read_text()
    (record,) = (folder.parent / "runs").glob("unseen*updated*.json")
    users = torch.tensor(json.loads(record.read_text())["users"])

    (*first, last), others = seen[:-3], seen[-3:]
    assert all(name.startswith(COLLABORATIVE) and counts[users].all() for name, _, counts, *_ in (*first, last))
    assert [name for name, *_ in others] == ["user_tokenizer", "item_tokenizer", "llm"]
    for _, model, counts, vectors, _ in others:
        blank = vectors.abs().sum(dim=1) == 0
        assert not counts[users].any() and blank[users].all() and blank.sum() == len(users) + 1  # and the padding
        assert torch.equal(model.item_vectors, last[1].item_vectors)
    # nor does a stage beside another collaborative stage take these for its own
    assert experiment(*arguments, folder="tuned-least")[0] == 0
    assert not {entry for *_, entry in others} & {entry for *_, entry in seen[-3:]}


@pytest.mark.unit
def test_the_group_of_least_history_is_that_and_ties_go_by_seed():
    counts = torch.tensor([0, 5, 2, 2, 2, 9, 1, 7])
    group = left_out_users(counts, "least", 0.34, seed=1)
    assert len(group) == 2 and set(group.tolist()) <= {2, 3, 4}
    groups = {tuple(left_out_users(counts, "least", 0.34, seed).tolist()) for seed in range(20)}
    assert len(groups) == 3
    assert 6 not in np.concatenate([left_out_users(counts, "random", 0.9, s) for s in range(5)])


