"""What every model of ours must do, whatever it is: one test over all of them, on the toy data."""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_trainer

import recbole_tokenrec

# Cut down to seconds; the toy data has 4 groups of 12 users and 12 items.
QUICK = {
    "TokenRec": {
        "llm_backbone": "t5-scratch-tiny", "cf_embedding_size": 16, "cf_epochs": 20, "cf_train_batch_size": 16,
        "mq_num_codebooks": 3, "mq_user_num_codebooks": 3, "mq_codebook_size": 16, "mq_codeword_dim": 16,
        "mq_hidden_size": 32, "mq_epochs": 2, "mq_min_steps": 40, "llm_epochs": 3, "llm_train_batch_size": 16,
        "stage_cache": False,
    },
    "LightGCNSoftmax": {"embedding_size": 16, "train_batch_size": 16, "epochs": 20},
    "GTN": {"epochs": 20, "train_batch_size": 64, "embedding_size": 16},
    "LTGNN": {"epochs": 20, "train_batch_size": 64, "embedding_size": 16},
    "SASRecCE": {"epochs": 40, "train_batch_size": 16, "hidden_size": 32, "learning_rate": 3e-3},
    "BERT4RecCE": {
        "epochs": 100, "stopping_step": 20, "train_batch_size": 16, "hidden_size": 32, "learning_rate": 5e-3,
        "mask_ratio": 0.4,
    },
    "S3RecCE": {
        "pretrain_epochs": 10, "epochs": 40, "train_batch_size": 16, "hidden_size": 32, "learning_rate": 3e-3,
    },
    "RecencyEASE": {"recency": 0.5},
}  # fmt: skip
# These score the items that their beams found, and nothing else.
GENERATIVE = {
    "llm_backbone": "t5-scratch-tiny", "epochs": 8, "eval_step": 4, "train_batch_size": 8, "targets_per_prompt": 2,
    "learning_rate": 3e-3, "embedding_lr_ratio": 3, "item_indexing": "cid", "cid_clusters": 4, "cid_cluster_size": 12,
}  # fmt: skip
QUICK.update({name: GENERATIVE for name in ("P5", "CID")})
QUICK["POD"] = {**GENERATIVE, "epochs": 14, "eval_step": 7, "num_candidates": 5, "max_history": 4}
QUICK["CoLLM"] = {**GENERATIVE, "text_epochs": 2, "cf_epochs": 20}


NAMES = sorted(set(recbole_tokenrec.available_models()) & set(QUICK))


@pytest.fixture
def fit(build):
    """``fit(name, **keys)``: (trainer, train, valid, test)."""

    def run(name, **keys):
        config, model, train, valid, test = build(name, **{**QUICK[name], "topk": [5, 20], **keys})
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        trainer.fit(train, valid, verbose=False, saved=True)
        return trainer, train, valid, test

    return run


@pytest.mark.recipe
@pytest.mark.parametrize("name", NAMES)
def test_contract(fit, name):
    trainer, train, valid, test = fit(name)
    result = trainer.evaluate(test)
    model = trainer.model.eval()

    # it has learnt the groups: the target is one of four unseen items of the user's own group
    assert result["hit@5"] > 0.5

    # full-sort scores: one row per user, finite for real items, the same as predict's
    users = torch.tensor([1, 7, 30])
    with torch.no_grad():
        scores = model.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
        assert scores.shape == (3, train._dataset.item_num)
        if QUICK[name].get("item_indexing"):
            assert torch.isfinite(scores).sum(dim=1).tolist() == [21, 21, 21]
            assert not torch.isfinite(scores[:, 0]).any()
            items = scores.argmax(dim=1)
        else:
            assert torch.isfinite(scores[:, 1:]).all()
            items = torch.tensor([3, 9, 1])
        pairs = model.predict(Interaction({"user_id": users, "item_id": items}))
        if name == "CoLLM":  # its logit of "yes"
            assert torch.isfinite(pairs).all()
        else:
            torch.testing.assert_close(pairs, scores[torch.arange(3), items], rtol=1e-3, atol=1e-3)

        # scores do not depend on who else is in the batch, nor on having been asked before
        alone = model.full_sort_predict(Interaction({"user_id": users[1:2]}))
        torch.testing.assert_close(alone, scores[1], rtol=1e-4, atol=1e-4)

    # evaluating twice gives the same numbers, and the saved checkpoint holds them
    assert trainer.evaluate(test, load_best_model=False) == result
    assert trainer.evaluate(test, load_best_model=True) == result


@pytest.mark.recipe
@pytest.mark.parametrize("name", NAMES)
def test_test_items_make_no_difference_to_training(fit, name, toy_data, tmp_path):
    """Leakage: exchange every user's test item for another; training and validation must not notice."""
    header, *lines = (toy_data / "toy" / "toy.inter").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    newest = {user: number for number, (user, _, _) in enumerate(rows)}
    kept = [row for number, row in enumerate(rows) if number not in newest.values()]
    shorter = {"epochs": QUICK[name]["epochs"] // 2} if "epochs" in QUICK[name] else {}  # nobody need learn much here
    results = []
    for version in ("original", "changed"):
        last = [list(rows[number]) for number in newest.values()]
        if version == "changed":
            for row in last:
                own = {item for user, item, _ in rows if user == row[0]}
                row[1] = next(f"{row[0][:2]}i{i}" for i in range(12) if f"{row[0][:2]}i{i}" not in own)
        folder = tmp_path / version / "toy"
        folder.mkdir(parents=True)
        # the exchanged rows stand last, so that both versions number users and items alike
        (folder / "toy.inter").write_text("\n".join([header, *("\t".join(row) for row in kept + last)]) + "\n")
        trainer, train, _, test = fit(name, data_path=str(folder.parent), **shorter)
        results.append((train._dataset.field2token_id["item_id"], trainer.best_valid_result, trainer.evaluate(test)))
    assert results[0][0] == results[1][0]
    assert results[0][1] == results[1][1]
    assert results[0][2] != results[1][2]  # the exchange did reach the test set
