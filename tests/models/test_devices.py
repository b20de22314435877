"""Every model trains, is evaluated and answers on a device that is not the CPU: nothing is left behind there.

``second_device.py`` stands in for the GPU that no test machine of ours has.
"""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_trainer
from second_device import second_device
from test_conformance import NAMES, QUICK

SHORT = {"epochs": 1, "cf_epochs": 1, "text_epochs": 1, "mq_min_steps": 2, "mq_epochs": 1, "llm_epochs": 1}
SMALL = {"mq_num_codebooks": 2, "mq_codebook_size": 8, "mq_codeword_dim": 8}
PLAIN = {"llm_user_tokens": "all", "prompt_decoder_items": 0}


@pytest.fixture
def train(build):
    """``train(name, device, **keys)``: what a short training on ``device`` leaves, (trainer, test)."""

    def run(name, device, **keys):
        short = {key: value for key, value in SHORT.items() if key in QUICK[name]}
        keys = {**QUICK[name], **short, **keys, "topk": [5, 20]}
        config, model, train, valid, test = build(name, device=device, **keys)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model.to(device))
        trainer.fit(train, valid, verbose=False, saved=True)
        return trainer, test

    return run


def answers(trainer, test, device):
    result = trainer.evaluate(test)  # of the best epoch, read from its checkpoint
    assert set(result) >= {"hit@5", "ndcg@20"}
    users = Interaction({"user_id": torch.tensor([1, 7, 30])}).to(device)
    with torch.no_grad():
        assert trainer.model.full_sort_predict(users).device == device


@pytest.mark.recipe
@pytest.mark.parametrize("name", NAMES)
def test_all_is_in_one_place(train, name):
    with second_device() as device:
        answers(*train(name, device), device)


@pytest.mark.recipe
@pytest.mark.parametrize(
    "keys",
    [
        {"preset": "user_id_only"},
        {"preset": "paper"},
        {"cf_targets": ["next", "random", "all"], "prompt_decoder_items": 5, "llm_item_dropout": 0.4},
        {"cf_sampled_items": 20, "llm_sampled_items": 20, "precision": "fp32"},
        {"id_tokenizer": "rq", "cf_loss": "own", "cf_model": "BPR", **PLAIN},
        {"id_tokenizer": "kmeans", "cf_loss": "own", "history_at_test": "train_valid", **PLAIN},
        {"prompt_order": "shuffled", "prompt_style": "printed", "prompt_decoder_items": 0, "llm_ema": 0.0},
    ],
    ids=lambda keys: "-".join(f"{key}={value}" for key, value in list(keys.items())[:2]),
)
def test_so_it_is_for_every_kind_of_tokenrec(train, keys):
    with second_device() as device:
        answers(*train("TokenRec", device, **SMALL, **keys), device)
