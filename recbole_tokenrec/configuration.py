"""From a model's name and a user's wishes to a RecBole ``Config``: the command line's and the experiments' way.

Order of precedence, weakest first: RecBole's defaults, the model's own YAML and preset (``registry.py``), our
``properties/overall.yaml`` (leave-one-out, full sort, Hit and NDCG at 10, 20, 30: the same for every model of a
table), ``properties/baseline/<Model>.yaml`` for RecBole's models, ``properties/dataset/<name>.yaml``, the user's
files, the user's keys. Unknown keys are an error.
"""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Set
from functools import cache
from pathlib import Path

import recbole
import yaml
from recbole.config import Config
from recbole.utils import ModelType, get_model
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_tokenrec.commonkeys import check_common
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.options import nearest, reject_unknown
from recbole_tokenrec.paths import properties_dir
from recbole_tokenrec.registry import MODELS, check_own_keys, known_models
from recbole_tokenrec.settings import OPTIONS

# RecBole reads these, but no YAML of its own names them.
_UNLISTED = {
    "model", "dataset", "encoding", "loss_type", "benchmark_filename", "enable_amp", "enable_scaler", "transform",
    "wandb_project", "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_neg_sample_args", "numerical_features", "discretization",
}  # fmt: skip

# Settings that say where, how loudly and how often, not what: runs that differ in these alone have the same numbers.
NO_MATTER = {
    "checkpoint_dir", "data_path", "show_progress", "state", "log_wandb", "device", "gpu_id",
    "worker", "memory_budget_gb", "stage_cache", "resume", "checkpoint_every_seconds",
    "distributed_timeout", "ids_digest",
}  # fmt: skip


def make_config(
    model: str, dataset: str, config_files=(), overrides: dict | None = None, known: Set[str] | None = None
) -> Config:
    """RecBole's ``Config`` for one model of ours or RecBole's.

    Args:
        model, dataset: names.
        config_files: paths of the user's YAML files, later ones win.
        overrides: the user's keys, in Python types.
        known: keys that are no mistake; by default those that this model reads.

    Raises:
        ConfigError: unknown model or key, value that the model could not use, file that cannot be read.
    """
    if not dataset or Path(dataset).name != dataset:
        raise ConfigError(f"dataset: {dataset!r} is not allowed; allowed: a name, without a path (see data_path)")
    overrides = dict(overrides or {})
    known = known_keys(model) if known is None else known
    for chosen in (*map(_read_yaml, config_files), overrides):
        if chosen.get("preset") and "preset" not in known:
            raise no_presets(chosen["preset"], model)
        for key in set(chosen) - known if model == "TokenRec" else ():
            if stages := _of_stages(key):
                raise ConfigError(f"{key}: TokenRec trains in stages, each with a key of its own: {', '.join(stages)}")
        reject_unknown(chosen, known)
        if chosen.get("dataset", dataset) != dataset:
            raise ConfigError(f"dataset: {chosen['dataset']!r} was set, but '{dataset}' is asked for")
    defaults = _table_defaults(model, dataset)
    keys = together(defaults, merged(config_files), overrides)
    if model != "TokenRec":  # of several models in a table
        keys.pop("preset", None)
    if not isinstance(keys.get("valid_metric", ""), str):  # Config would split it
        raise ConfigError(f"valid_metric: {keys['valid_metric']!r} is not allowed; allowed: a text such as NDCG@20")
    if keys.get("metrics", True) in ([], None, ""):
        raise ConfigError(f"metrics: {keys['metrics']!r} is not allowed; allowed: a list of RecBole's, such as NDCG")
    with quiet_argv():
        try:
            config = _LiteralConfig(model=model, dataset=dataset, config_dict=keys)
            config.__class__ = Config  # as whom it is saved in checkpoints
        except ConfigError:
            raise
        except (ValueError, KeyError, NotImplementedError, TypeError) as error:
            raise ConfigError(f"model '{model}': {error}") from error
    check_common(config)
    check_own_keys(config)
    return config


class _LiteralConfig(Config):
    """RecBole calls ``eval`` on every text of a ``config_dict``; ours come out of files that strangers may write."""

    def _convert_config_dict(self, config_dict):
        return {key: _literal(text) if isinstance(text, str) else text for key, text in config_dict.items()}


def _literal(text: str):
    """The number, list, … that ``text`` writes out, as RecBole reads it, or ``text``; nothing is called."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _table_defaults(model: str, dataset: str) -> dict:
    """What RecBole's own models need to be comparable; ours carry it in their YAML."""
    if model in MODELS:
        return {}
    folder = properties_dir()
    files = [folder / "overall.yaml", folder / "baseline" / f"{model}.yaml", folder / "dataset" / f"{dataset}.yaml"]
    keys = merged([file for file in files if file.is_file()])
    keys.pop("grid", None)  # what `experiment tune` tries
    keys.update((keys.pop("datasets", None) or {}).get(dataset, {}))
    try:
        model_class = get_model(model)
    except (ValueError, AttributeError, ImportError) as error:
        if model in known_models():
            raise ConfigError(f"model '{model}' cannot be imported: {error}") from error
        raise ConfigError(f"unknown model '{model}'{nearest(model, known_models())}") from error
    if model_class.type == ModelType.SEQUENTIAL:
        keys["eval_batch_size"] = 1024  # RecBole counts users here, not scores
        if getattr(model_class, "input_type", None) is None and keys.get("loss_type", "CE") == "CE":
            keys["train_neg_sample_args"] = None
    return keys


def merged(files) -> dict:
    """The files' keys, later files winning."""
    return together(*map(_read_yaml, files))


def together(*settings: dict) -> dict:
    """All keys, later ones winning; of ``eval_args`` each part by itself, so that a part leaves the rest as it is."""
    result = {}
    for chosen in settings:
        parts = [one["eval_args"] for one in (result, chosen) if isinstance(one.get("eval_args"), dict)]
        result.update(chosen)
        if len(parts) == 2:
            result["eval_args"] = {**parts[0], **parts[1]}
    return result


def no_presets(preset, model: str) -> ConfigError:
    """What to raise where ``model`` is given a preset."""
    return ConfigError(f"preset: {preset!r} was set, but {model} has no presets; allowed: for TokenRec only")


@cache  # a dozen YAML files, and an experiment asks for every model again and again
def known_keys(model: str) -> frozenset[str]:
    """Every configuration key that RecBole, this model or its type reads."""
    keys = set(OPTIONS) if model == "TokenRec" else set()
    keys |= _UNLISTED | set(general_arguments) | set(training_arguments)
    keys |= set(evaluation_arguments) | set(dataset_arguments)
    folder = Path(recbole.__file__).parent / "properties"
    files = [folder / "overall.yaml", folder / "dataset" / "sample.yaml", folder / "model" / f"{model}.yaml"]
    files += sorted((folder / "quick_start_config").glob("*.yaml"))
    files += [properties_dir() / "overall.yaml", properties_dir() / "model" / f"{model}.yaml"]
    for file in files:
        if file.is_file():
            keys |= set(_read_yaml(file))
    if model == "TokenRec":  # reads none of these; somebody who says epochs: 1 shall not wait for hours
        keys -= {"learner", *filter(_of_stages, training_arguments)}
    return frozenset(keys - {"grid", "datasets"})


def _of_stages(key: str) -> list[str]:
    """TokenRec's own keys for one of RecBole's: cf_epochs, mq_epochs, llm_epochs for epochs."""
    return [name for name in (f"cf_{key}", f"mq_{key}", f"llm_{key}") if name in OPTIONS]


def grid_of(model: str) -> dict[str, list]:
    """The values that ``experiment tune`` tries for each key of a model, as its YAML states them; {} if none."""
    folder = properties_dir()
    files = [folder / MODELS[model].yaml] if model in MODELS else [folder / "baseline" / f"{model}.yaml"]
    return merged([file for file in files if file.is_file()]).get("grid") or {}


def parse_value(text: str):
    """A command-line value as YAML reads it, with RecBole's notion of numbers (1e-3 is one)."""
    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError:
        return text


@contextlib.contextmanager
def quiet_argv():
    """RecBole's ``Config`` reads ``sys.argv`` by itself; what it should know is given to it in ``config_dict``."""
    before = sys.argv
    sys.argv = before[:1]
    try:
        yield
    finally:
        sys.argv = before


def _read_yaml(path) -> dict:
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_loader())
    except OSError as error:
        raise ConfigError(f"config_files: {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config_files: {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config_files: {path} must hold keys and values, not {type(content).__name__}")
    return content


def _loader():
    config = Config.__new__(Config)
    return config._build_yaml_loader()
