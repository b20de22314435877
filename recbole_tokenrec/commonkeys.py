"""RecBole's own keys, checked before anything is read or written: RecBole would fail hours later, or not at all.

What only some models have, each of ours checks by its ``options``; here is what every model has. A key that is not set
(None) is left to RecBole's default.
"""

from __future__ import annotations

import codecs
import importlib.util
import re

from recbole.evaluator import base_metric
from recbole.evaluator.register import metrics_dict
from recbole.utils import EvaluatorType

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.options import Option, check, nearest
from recbole_tokenrec.registry import MODELS

_LEVELS = ("debug", "info", "warning", "error", "critical")
_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam", "muon")
KNOW_MUON = ("SASRecCE", "BERT4RecCE", "S3RecCE")  # elsewhere RecBole would take Adam in its place
# Metrics that are no TopkMetric and yet are reported at each k.
_AT_K = ("itemcoverage", "averagepopularity", "shannonentropy", "giniindex", "tailpercentage")

OPTIONS: dict[str, Option] = {
    "seed": Option(int, low=0, high=2**32 - 1),
    "epochs": Option(int, "Most epochs.", 1),
    "train_batch_size": Option(int, "Rows of a batch.", 1),
    "eval_batch_size": Option(int, low=1),
    "learning_rate": Option(float, "The optimizer's.", 0, open_low=True),
    "weight_decay": Option(float, low=0),
    "learner": Option(str, choices=_LEARNERS),
    "eval_step": Option(int, "Epochs between two validations.", 0),
    "stopping_step": Option(int, "Validations without a gain before training stops.", 0),
    "embedding_size": Option(int, low=1),
    "clip_grad_norm": Option(dict, "Arguments of torch's clip_grad_norm_."),
    "train_neg_sample_args": Option(dict, "RecBole's sampler of negatives; empty draws none.", optional=True),
    "metric_decimal_place": Option(int, low=0),
    "use_gpu": Option(bool),
    "reproducibility": Option(bool),
    "show_progress": Option(bool),
    "worker": Option(int, low=0),
    "load_col": Option(dict),
    "field_separator": Option(str),
    "val_interval": Option(dict),
}

# The keys within a key; RecBole does not read others, and says nothing.
_PARTS = {
    "eval_args": ("split", "order", "group_by", "mode"),
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
}


def check_common(config) -> None:
    """Raise a ``ConfigError`` for the first of RecBole's keys whose value it could not use.

    Args:
        config: RecBole's ``Config``.
    """
    for key, option in OPTIONS.items():
        if config[key] is not None:
            check(key, config[key], option)
    for key, parts in _PARTS.items():
        for part in config[key] or {}:
            if part not in parts:
                allowed = f"allowed: {', '.join(parts)}{nearest(part, parts)}"
                raise ConfigError(f"{key}: the part '{part}' is not known; {allowed}")
    if config["learner"] == "muon" and config["model"] not in (*KNOW_MUON, "TokenRec"):  # which does not read it
        allowed = f"{', '.join(_LEARNERS[:-1])}, and of {', '.join(KNOW_MUON)} muon"
        raise ConfigError(f"learner: 'muon' is not allowed for {config['model']}; allowed: {allowed}")
    if len(config["field_separator"] or "") != 1:
        raise ConfigError(f"field_separator: {config['field_separator']!r} is not allowed; allowed: one character")
    if config["state"] is not None and str(config["state"]).lower() not in _LEVELS:
        raise ConfigError(f"state: {config['state']!r} is not allowed; allowed: one of {', '.join(_LEVELS)}")
    if not config["topk"]:
        raise ConfigError("topk: [] is not allowed; allowed: a list of int in [1, inf)")
    for source, columns in (config["load_col"] or {}).items():
        if columns not in (None, "*") and not isinstance(columns, list):
            raise ConfigError(
                f"load_col: {{{source}: {columns!r}}} is not allowed; allowed: a list of columns, '*' or empty for all"
            )
    _check_split(config["eval_args"])
    if config["eval_args"]["order"] not in ("TO", "RO"):
        raise ConfigError(
            f"eval_args: order: {config['eval_args']['order']!r} is not allowed; allowed: TO (by time) or RO (random)"
        )
    if "labeled" in config["eval_args"]["mode"].values():
        if config["model"] in MODELS:
            raise ConfigError("eval_args: mode: labeled is not allowed; allowed: full, uniN or popN")
        if config["eval_type"] == EvaluatorType.RANKING:
            raise ConfigError(
                f"eval_args: mode: labeled needs metrics of labels, such as AUC; metrics is {config['metrics']}"
            )
    try:
        codecs.lookup(config["encoding"] or "utf-8")
    except (LookupError, TypeError) as error:
        raise ConfigError(f"encoding: {config['encoding']!r} is not allowed; allowed: one of Python's") from error
    if config["log_wandb"] and importlib.util.find_spec("wandb") is None:
        raise ConfigError("log_wandb: True needs the package wandb, which is not installed")
    _check_metrics(config)
    for key in ("user_inter_num_interval", "item_inter_num_interval"):
        if config[key] is not None and not _are_intervals(str(config[key])):
            raise ConfigError(f'{key}: {config[key]!r} is not allowed; allowed: an interval like "[5,inf)" or empty')
    for field, interval in (config["val_interval"] or {}).items():
        if not isinstance(interval, list) and not (isinstance(interval, str) and _are_intervals(interval)):
            raise ConfigError(
                f'val_interval: {{{field}: {interval!r}}} is not allowed; allowed: an interval like "[3,inf)" or a list'
            )


def _are_intervals(text: str) -> bool:
    """Whether it is an interval like ``[5,inf)``, or several with semicolons between them."""
    ends = [re.fullmatch(r"\s*[\[(]([^,]+),([^,]+)[\])]\s*", part) for part in text.split(";")]
    try:
        return all(end is not None and float(end[1]) <= float(end[2]) for end in ends)
    except ValueError:
        return False


def _check_split(eval_args: dict) -> None:
    split = eval_args.get("split")
    kind, value = next(iter(split.items())) if isinstance(split, dict) and len(split) == 1 else (None, None)
    shares = isinstance(value, list) and len(value) == 3 and all(isinstance(x, (int, float)) and x > 0 for x in value)
    if kind == "LS":
        right, allowed = value == "valid_and_test", "LS: valid_and_test (there must be a validation and a test set)"
    elif kind == "RS":
        right, allowed = shares, "RS: a list of three numbers above 0, e.g. [0.8, 0.1, 0.1]"
    else:
        right, allowed = False, "{LS: valid_and_test} or {RS: [0.8, 0.1, 0.1]}"
    if not right:
        raise ConfigError(f"eval_args: split: {split!r} is not allowed; allowed: {allowed}")


def _check_metrics(config) -> None:
    names = config["metrics"] if isinstance(config["metrics"], list) else [config["metrics"]]
    topk = config["topk"] if isinstance(config["topk"], list) else [config["topk"]]
    allowed = []
    for name in names:
        ranked = issubclass(metrics_dict[name.lower()], base_metric.TopkMetric) or name.lower() in _AT_K
        allowed += [f"{name}@{k}" for k in topk] if ranked else [name]
    chosen = config["valid_metric"]
    if not isinstance(chosen, str) or chosen.lower() not in [name.lower() for name in allowed]:
        raise ConfigError(f"valid_metric: {chosen!r} is not allowed; allowed: one of {', '.join(allowed)}")
