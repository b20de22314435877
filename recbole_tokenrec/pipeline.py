"""One model on one data set, from configuration to a row of the result file.

``run_models`` is what ``recbole-tokenrec run`` calls and what experiments build on. It follows RecBole's
``run_recbole`` step by step, and measures as it goes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import platform
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
from recbole_tokenrec.checkpoints import ids_digest
from recbole_tokenrec.collaborative.sparse_lightgcn import SparseLightGCN
from recbole_tokenrec.configuration import NO_MATTER, known_keys, make_config, no_presets
from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.errors import ConfigError, TokenRecError, is_want_of_memory
from recbole_tokenrec.files import written_whole
from recbole_tokenrec.health import examine
from recbole_tokenrec.llm.backbone import load_backbone, scratch_presets, weights_digest
from recbole_tokenrec.measure import Cost, machine
from recbole_tokenrec.ranks import with_ranks
from recbole_tokenrec.registry import MODELS
from recbole_tokenrec.sources import code_digest
from recbole_tokenrec.training import distributed
from recbole_tokenrec.training.progress import resume_options
from recbole_tokenrec.training.resume import ResumableTraining

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
        result_file: written anew after each model, so that a cut loses the running model only. With ``resume``, its
            rows of the same configuration, versions and data are kept, and the running model goes on where it was.
    """
    if preset and "TokenRec" not in models:
        raise no_presets(preset, ", ".join(models))
    if distributed.active() and set(models) != {"TokenRec"}:
        raise ConfigError(f"model: {', '.join(models)}: TokenRec alone can be trained by several processes (torchrun)")
    known = set().union(*(known_keys(name) for name in models))
    configs = []
    for name in models:
        own = {**(overrides or {}), **({"preset": preset} if preset and name == "TokenRec" else {})}
        configs.append(make_config(name, dataset, config_files, own, known))  # a wrong value stops before any training
    check_backbones(configs[1:])
    resume, _ = resume_options(configs[0])
    for folder in {config["checkpoint_dir"] for config in configs}:
        need_folder("checkpoint_dir", folder)
    if result_file:
        if Path(result_file).is_dir():
            raise ConfigError(f"result_file: {result_file} is a folder; allowed: a file's name")
        need_folder("result_file", Path(result_file).absolute().parent)
    earlier = _earlier_result(result_file, configs[0]) if resume and distributed.is_first() else None
    earlier = distributed.shared(earlier)
    result = {"dataset": None, "seed": None, "versions": versions(), "models": []}
    for config in configs:
        identity = identity_of(config)
        row = next((row for row in (earlier or {}).get("models", []) if row.get("identity") == identity), None)
        if row is None:
            trained = run_model(config)
            row, result["dataset"] = trained.row, trained.data
        else:
            result["dataset"] = earlier["dataset"]
        result["seed"] = config["seed"]
        result["models"].append(row)
        if result_file and distributed.is_first():
            write_json(result_file, result)
    return result


def check_backbones(configs) -> None:
    """Raise a ``BackboneError`` for a backbone that cannot be had, before the models that come first are trained.

    Folders and hub ids are read in full, once more than training needs: seconds.
    """
    names = {config["llm_backbone"] for config in configs if "llm_backbone" in known_keys(config["model"])}
    for name in names:  # no text is the model's own affair
        if isinstance(name, str) and (name not in scratch_presets() or Path(name).is_dir()):
            load_backbone(name, [])


def need_folder(key: str, folder) -> None:
    """Make ``folder``, or raise a ``ConfigError`` that names ``key``: now, not when hours of work are to be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}: the folder {folder} cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{key}: the folder {folder} may not be written")


def identity_of(config) -> str:
    """Hash of a training's settings, a local backbone's files and the versions: all that decides beside the data."""
    what = {key: value for key, value in plain(config.final_config_dict).items() if key not in NO_MATTER}
    text = json.dumps([what, versions(), *weights_digest(config["llm_backbone"])], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _earlier_result(path, config) -> dict | None:
    """What an earlier run wrote to the result file, if it was made of the data that are there now."""
    try:
        earlier = json.loads(Path(path).read_text(encoding="utf-8"))
        known = earlier["dataset"], earlier["models"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    init_seed(config["seed"], config["reproducibility"])
    dataset, (train_data, _, _) = load_data(config)
    return earlier if known[0] == describe_data(config, dataset, train_data) else None


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
    name, identity = config["model"], identity_of(config)
    init_seed(config["seed"], config["reproducibility"])
    with Cost() as loading:
        dataset, (train_data, valid_data, test_data) = load_data(config)
    config["ids_digest"] = ids_digest(dataset)  # goes into the checkpoint
    init_seed(config["seed"], config["reproducibility"])
    with Cost() as building:
        model = _built(name, config, train_data._dataset).to(config["device"])
        # Only now, so that bad data or a backbone that cannot be had leaves no log behind.
        start_logging(config)
        logging.getLogger().info(dataset)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    resumable = None
    with Cost() as training:
        curve = None
        if getattr(trainer, "walks_stages", False):
            trainer.fit(train_data, valid_data, saved=True, show_progress=config["show_progress"])
        else:
            data = describe_data(config, dataset, train_data)
            resumable = ResumableTraining(trainer, train_data, f"{identity}-{data['fingerprint']}")
            with _told_of_recbole(name, "RecBole cannot train it on these data and settings"):
                curve = _fit_quietly(trainer, train_data, valid_data, config, resumable)
    ranks = {}
    with Cost() as evaluation, _told_of_recbole(name, "RecBole cannot evaluate it on these data and settings"):
        test, ranks["test"] = _evaluate(trainer, test_data, load_best_model=True)
        valid, ranks["valid"] = _evaluate(trainer, valid_data, load_best_model=False)
    row = {
        "name": name,
        "identity": identity,
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
            "train": training.seconds + (resumable.seconds if resumable else 0),
            "evaluation": evaluation.seconds,
        },
        "cpu_seconds": {
            "train": training.cpu_seconds + (resumable.cpu_seconds if resumable else 0),
            "evaluation": evaluation.cpu_seconds,
        },
        "curve": curve,
        "peak_rss_mb": max(cost.peak_rss_mb for cost in (loading, building, training, evaluation)),
        "checkpoint": os.path.abspath(trainer.saved_model_file),
        "health": examine(trainer, valid_data),
        "machine": {**machine(), "device": _device(config["device"])},
    }
    if hasattr(model, "low_precision"):  # ``precision: auto`` differs by machine
        row["precision"] = "bf16" if model.low_precision else "fp32"
    if hasattr(trainer, "describe"):
        extra = trainer.describe(valid_data, test_data)
        row["seconds"].update(extra.pop("seconds"))
        row.update(plain(extra))
    if resumable:
        resumable.forget()
    return Trained(row, describe_data(config, dataset, train_data), ranks, trainer, valid_data, test_data)


def _built(name: str, config, dataset):
    with _told_of_recbole(name, "RecBole cannot build it of these data and settings"):
        return (FASTER.get(name) or get_model(name))(config, dataset)


@contextlib.contextmanager
def _told_of_recbole(name: str, trouble: str):
    """A RecBole model that its data or settings do not suit is the user's affair, not a traceback's.

    What our own models raise is left alone, and so is want of memory.

    Raises:
        ConfigError: names the model, the trouble and RecBole's error, which is its cause.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        if name in MODELS or isinstance(error, TokenRecError) or is_want_of_memory(error):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"model '{name}': {trouble} ({what})") from error


def _device(device) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device)


def _evaluate(trainer, data, load_best_model: bool) -> tuple[dict, list[int]]:
    evaluate = functools.partial(trainer.evaluate, load_best_model=load_best_model, show_progress=False)
    return with_ranks(trainer, data, evaluate) if isinstance(data, FullSortEvalDataLoader) else (evaluate(data), [])


def _fit_quietly(trainer, train_data, valid_data, config, resumable: ResumableTraining) -> dict:
    """RecBole's ``fit`` with one bar over its epochs instead of two lines for each.

    Returns:
        The learning curve: ``{"loss": [of each epoch], "valid": [{"epoch", "cpu_seconds", "score"} of each
        validation]}``. Seconds are the processor's since training began, validations included, those of processes
        that were killed, too.
    """
    began = time.process_time() - resumable.cpu_seconds
    with tqdm(
        total=trainer.epochs,
        initial=trainer.start_epoch,
        ncols=110,
        desc=f"{config['model']:>14}",
        disable=not config["show_progress"],
        mininterval=0.5,
    ) as bar:

        def step(epoch, score):
            spent = time.process_time() - began
            resumable.valid.append({"epoch": epoch + 1, "cpu_seconds": spent, "score": float(score)})
            bar.set_postfix(valid=f"{score:.4f}", refresh=False)
            bar.update(epoch + 1 - bar.n)

        trainer.fit(train_data, valid_data, verbose=False, saved=True, show_progress=False, callback_fn=step)
    return {"loss": resumable.all_losses(), "valid": resumable.valid}


def start_logging(config) -> None:
    """RecBole's logger for this model, in place of the one of the model before; it and TensorBoard write to ``./``."""
    need_folder("the current folder", f"./log/{config['model']}")
    need_folder("the current folder", "./log_tensorboard")
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
    """Versions of what decides the numbers; ``code`` is a digest of this package's own."""
    names = ("recbole", "torch", "transformers", "numpy", "scipy", "pandas", "scikit-learn")
    found = {name: metadata.version(name) for name in names}
    found["torch"] = torch.__version__  # with its build, +cpu or +cu130
    ours = {"recbole-tokenrec": recbole_tokenrec.__version__, "code": code_digest()}
    return {**ours, "python": platform.python_version(), **found}


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
    """Write a JSON file whole or not at all; null stands for what is no number, such as one seed's deviation.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError:  # Python would write NaN, which other readers of JSON refuse
        text = json.dumps(_finite(content), indent=1, allow_nan=False)
    with written_whole(path, "the result") as file:
        file.write((text + "\n").encode("utf-8"))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
