"""Models trained once on the toy data (4 groups of 12 users and 12 items), as the command line trains them.

A plugin of ``conftest.py``: tests of the API, the command line, serving and the documents share it.
"""

import os
import shutil

import pytest

from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.pipeline import run_model

FAST = {
    "llm_backbone": "t5-scratch-tiny", "cf_embedding_size": 16, "cf_epochs": 20, "cf_train_batch_size": 16,
    "mq_codebook_size": 16, "mq_num_codebooks": 3, "mq_user_num_codebooks": 3, "mq_codeword_dim": 16,
    "mq_hidden_size": 32, "mq_min_steps": 40, "mq_epochs": 2, "llm_epochs": 4, "llm_train_batch_size": 16,
    "stage_cache": False,
}  # fmt: skip
KEYS = {
    "TokenRec": FAST,
    "LightGCNSoftmax": {"embedding_size": 16, "train_batch_size": 16, "epochs": 20},
    "SASRecCE": {"epochs": 20, "train_batch_size": 16, "hidden_size": 32, "learning_rate": 3e-3},
    "BPR": {"epochs": 100, "stopping_step": 100, "embedding_size": 16, "learning_rate": 0.01, "train_batch_size": 64},
    "SASRec": {"epochs": 25, "hidden_size": 16, "MAX_ITEM_LIST_LENGTH": 10, "learning_rate": 0.005},
    "CID": {"llm_backbone": "t5-scratch-tiny", "epochs": 2, "cid_clusters": 4, "cid_cluster_size": 16},
    "FM": {
        "epochs": 60, "learning_rate": 0.01, "train_batch_size": 64,
        "train_neg_sample_args": {
            "distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0,
        },
    },
}
TITLES = "item_id:token\tmovie_title:token_seq\n" + "".join(
    f"g{group}i{item}\tFilm {item} of {group}\n" for group in range(4) for item in range(12)
)


@pytest.fixture(scope="session")
def trained(toy_data, tmp_path_factory):
    """``trained(name, **keys)``: the checkpoint; the data set has titles, and is deleted once TokenRec is trained."""
    made = {}

    def train(name="TokenRec", **keys):
        key = (name, *sorted(keys.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            shutil.copytree(toy_data, folder / "data")
            (folder / "data" / "toy" / "toy.item").write_text(TITLES)
            keys = {
                "data_path": str(folder / "data"), "checkpoint_dir": str(folder / "out"), "use_gpu": False,
                "show_progress": False, "state": "ERROR", **KEYS[name], **keys,
            }  # fmt: skip
            before = os.getcwd()
            os.chdir(folder)  # RecBole writes its logs where it runs
            try:
                made[key] = run_model(make_config(name, "toy", overrides=keys)).row["checkpoint"]
            finally:
                os.chdir(before)
            if name in ("TokenRec", "CID"):
                shutil.rmtree(folder / "data")
        return made[key]

    return train


@pytest.fixture
def recommender(trained):
    """TokenRec, loaded anew."""
    import recbole_tokenrec

    return recbole_tokenrec.load(trained())
