"""What tests of single RecBole models share."""

import pytest
from untrained_models import COMMON


@pytest.fixture(autouse=True)
def toy_models(one_thread):
    """All tests here."""


@pytest.fixture
def learn_toy(toy_data):
    """``learn_toy(name, **keys)``: test metrics after a short ``run_recbole`` on the toy data.

    Four items of a user's own group are unseen at test, and the target is one of them: who has learnt the
    groups has it among his first five, while popularity finds it about once in eight times.
    """
    from recbole.quick_start import run_recbole

    def learn(name, **keys):
        keys = {
            "data_path": str(toy_data),
            **COMMON,
            "epochs": 30,
            "eval_step": 5,
            "train_batch_size": 128,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "metrics": ["Hit", "NDCG"],
            "topk": [5, 20],
            "valid_metric": "NDCG@20",
            **keys,
        }
        return run_recbole(model=name, dataset="toy", config_dict=keys)["test_result"]

    return learn
