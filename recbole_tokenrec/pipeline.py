"""One model on one data set, from configuration to a row of the result file.

``run_models`` is what ``recbole-tokenrec run`` calls and what experiments build on. It follows RecBole's
``run_recbole`` step by step, and measures as it goes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from tqdm import tqdm

import recbole_tokenrec
from recbole_tokenrec.collaborative.sparse_lightgcn import SparseLightGCN
from recbole_tokenrec.configuration import known_keys, make_config
from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.measure import Cost
from recbole_tokenrec.ranks import with_ranks
from recbole_tokenrec.settings import read_settings

# Models of RecBole's that have a faster twin here: same parameters, same scores, same gradients (a test compares them).
FASTER = {"LightGCN": SparseLightGCN}
_HIDDEN_KEYS = {"llm_backbone_state"}


def run_models(
    models: list[str],
    dataset: str,
    config_files=(),
    overrides: dict | None = None,
    preset: str | None = None,
    result_file=None,
) -> dict:
    """Train and evaluate each model on the same split; the result file's content (see README for its shape).

    Args:
        models: names of ours or RecBole's.
        dataset: name.
        config_files, overrides: the user's settings; each model takes those it knows.
        preset: TokenRec's.
        result_file: written anew after each model, so that a cut loses the running model only.
    """
    known = set().union(*(known_keys(name) for name in models))
    configs = []
    for name in models:
        own = {**(overrides or {}), **({"preset": preset} if preset and name == "TokenRec" else {})}
        configs.append(make_config(name, dataset, config_files, own, known))
        if name == "TokenRec":
            read_settings(configs[-1])  # a wrong value stops before anything is trained
    result = {"dataset": None, "seed": None, "versions": versions(), "models": []}
    for config in configs:
        trained = run_model(config)
        row, result["dataset"] = trained.row, trained.data
        result["seed"] = config["seed"]
        result["models"].append(row)
        if result_file:
            write_json(result_file, result)
    return result


class Trained(NamedTuple):
    """A trained and evaluated model: its row of the result file, the data set's entry, and what made them.

    ``ranks`` holds for "valid" and "test" each user's rank of the held-out item, see ``ranks.py``; empty unless all
    items are ranked.
    """

    row: dict
    data: dict
    ranks: dict
    trainer: object
    valid_data: object
    test_data: object


def run_model(config) -> Trained:
    """Train the model of ``config`` and evaluate it."""
    name = config["model"]
    init_seed(config["seed"], config["reproducibility"])
    start_logging(config)
    with Cost() as loading:
        dataset, (train_data, valid_data, test_data) = load_data(config)
    init_seed(config["seed"], config["reproducibility"])
    with Cost() as building:
        model = (FASTER.get(name) or get_model(name))(config, train_data._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    with Cost() as training:
        curve = None
        if getattr(trainer, "walks_stages", False):
            trainer.fit(train_data, valid_data, saved=True, show_progress=config["show_progress"])
        else:
            curve = _fit_quietly(trainer, train_data, valid_data, config)
    ranks = {}
    with Cost() as evaluation:
        test, ranks["test"] = _evaluate(trainer, test_data, load_best_model=True)
        valid, ranks["valid"] = _evaluate(trainer, valid_data, load_best_model=False)
    row = {
        "name": name,
        "preset": config["preset"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "config": plain(config.final_config_dict),
        "parameters": sum(p.numel() for p in model.parameters()),
        "valid": plain(valid),
        "test": plain(test),
        "seconds": {
            "data": loading.seconds,
            "build": building.seconds,
            "train": training.seconds,
            "evaluation": evaluation.seconds,
        },
        "cpu_seconds": {"train": training.cpu_seconds, "evaluation": evaluation.cpu_seconds},
        "curve": curve,
        "peak_rss_mb": max(cost.peak_rss_mb for cost in (loading, building, training, evaluation)),
        "checkpoint": os.path.abspath(trainer.saved_model_file),
    }
    if hasattr(trainer, "describe"):
        extra = trainer.describe(valid_data, test_data)
        row["seconds"].update(extra.pop("seconds"))
        row.update(plain(extra))
    return Trained(row, describe_data(config, dataset, train_data), ranks, trainer, valid_data, test_data)


def _evaluate(trainer, data, load_best_model: bool) -> tuple[dict, list[int]]:
    evaluate = functools.partial(trainer.evaluate, load_best_model=load_best_model, show_progress=False)
    return with_ranks(trainer, data, evaluate) if isinstance(data, FullSortEvalDataLoader) else (evaluate(data), [])


def _fit_quietly(trainer, train_data, valid_data, config) -> dict:
    """RecBole's ``fit`` with one bar over its epochs instead of two lines for each.

    Returns:
        The learning curve: ``{"loss": [of each epoch], "valid": [{"epoch", "cpu_seconds", "score"} of each
        validation]}``. Seconds are the processor's since training began, validations included.
    """
    began, validations = time.process_time(), []
    bar = tqdm(
        total=trainer.epochs, ncols=110, desc=f"{config['model']:>14}", disable=not config["show_progress"],
        mininterval=0.5,
    )  # fmt: skip

    def step(epoch, score):
        spent = time.process_time() - began
        validations.append({"epoch": epoch + 1, "cpu_seconds": spent, "score": float(score)})
        bar.set_postfix(valid=f"{score:.4f}", refresh=False)
        bar.update(epoch + 1 - bar.n)

    trainer.fit(train_data, valid_data, verbose=False, saved=True, show_progress=False, callback_fn=step)
    bar.close()
    return {"loss": [float(loss) for loss in trainer.train_loss_dict.values()], "valid": validations}


def start_logging(config) -> None:
    """RecBole's logger for this model, in place of the one of the model before."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    init_logger(config)


def describe_data(config, dataset, train_data) -> dict:
    """Name, counts and fingerprint: two result files with the same fingerprint used the same rows in the same split."""
    features = dataset.inter_feat
    digest = hashlib.sha256()
    for field in (dataset.uid_field, dataset.iid_field):
        digest.update(np.asarray(dataset.field2id_token[field]).astype(str).tobytes())
        digest.update(features[field].numpy().tobytes())
    digest.update(json.dumps(plain(config["eval_args"]), sort_keys=True).encode())
    for field in (dataset.uid_field, dataset.iid_field):
        digest.update(np.sort(train_data._dataset.inter_feat[field].numpy()).tobytes())
    return {
        "name": config["dataset"],
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "interactions": len(features),
        "fingerprint": digest.hexdigest()[:16],
    }


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("recbole", "torch", "transformers", "numpy", "scipy", "pandas", "scikit-learn")
    found = {name: metadata.version(name) for name in names}
    return {"recbole-tokenrec": recbole_tokenrec.__version__, "python": platform.python_version(), **found}


def plain(value):
    """``value`` in JSON's own types; anything else by its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if key not in _HIDDEN_KEYS}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def write_json(path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
