"""Shared fixtures: a toy data set whose right answer is known, quiet logs, and no network.

The toy data: ``groups`` groups of users and of items; every user takes the items of his own group in a
different order and his last two (validation, test) are items of that group too. A model that learns
anything ranks the items of a user's own group, unseen ones included, above all others.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the processors, and what they start does
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(2, share))))

import logging
import sys

import numpy as np
import pytest
import torch

import recbole_tokenrec  # noqa: F401  (makes RecBole importable)

pytest_plugins = ["trained_models", "untrained_models"]

if "OMP_NUM_THREADS" not in os.environ:  # a busy machine wants one
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def write_toy(folder, name="toy", groups=4, users=12, items=12, per_user=9, seed=0):
    """Write ``folder/name/name.inter``: ``groups*users`` users, ``groups*items`` items; returns ``folder``."""
    rng = np.random.default_rng(seed)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for group in range(groups):
        for user in range(users):
            taken = rng.permutation(items)[:per_user]
            rows += [f"g{group}u{user}\tg{group}i{item}\t{t + 1}" for t, item in enumerate(taken)]
    (target / f"{name}.inter").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """Folder to give as ``data_path``; holds the data set ``toy``."""
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture
def one_thread():
    """Toy tensors: a second thread brings nothing, and on a busy machine its hand-overs cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path, monkeypatch):
    """RecBole writes saved/, log/ and log_tensorboard/ where it runs, and reads sys.argv: keep both clean."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    yield
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture
def tiny_t5(tmp_path):
    """Folder of a T5 and a Unigram tokenizer, trained and saved here: what from_pretrained reads is real."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, T5Config, T5Model

    from recbole_tokenrec.llm.prompts import all_texts

    folder = tmp_path / "tiny-t5"
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(all_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(5)
    config = T5Config(
        vocab_size=256, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    T5Model(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
