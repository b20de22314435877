"""``recbole-tokenrec run``: train and compare models on one data set.

Every key of RecBole or of our models can be given as ``--key=value``, e.g. ``--mq_num_codebooks=4``.
"""

from __future__ import annotations

import os
from pathlib import Path

from tabulate import tabulate

from recbole_tokenrec.configuration import merged, parse_value
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.pipeline import run_models
from recbole_tokenrec.training.distributed import active, is_first, process_group


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "run", help="train and compare models", description=__doc__.split("\n\n")[1], allow_abbrev=False
    )
    add_common_arguments(parser)
    parser.add_argument("--model", help="NAME[,NAME...]: ours or RecBole's (default: TokenRec)")
    parser.add_argument("--preset", help="tuned (default), paper, user_id_only; for TokenRec")
    parser.add_argument(
        "--resume", action="store_true", help="go on where the same command was killed: same numbers as uninterrupted"
    )
    parser.add_argument(
        "--result_file", help="JSON file (default: OUTPUT_DIR/DATASET-MODELS[-PRESET]-SEED.json, no PRESET for tuned)"
    )
    parser.set_defaults(handler=run)


def add_common_arguments(parser) -> None:
    """Arguments that every training subcommand has."""
    parser.add_argument("--dataset", help="(default: ml-100k, bundled in RecBole)")
    parser.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="YAML files, later ones win")
    parser.add_argument("--data_path", help="folder that holds DATASET/DATASET.inter")
    parser.add_argument("--seed", type=parse_value, help="int (default: 2020)")
    parser.add_argument("--output_dir", default="output", help="checkpoints, cache, results (default: %(default)s)")


def overrides_of(arguments, rest: list[str]) -> dict:
    """The user's keys: named arguments and every ``--key=value``."""
    files = merged(arguments.config_files)
    overrides = {}
    if "checkpoint_dir" not in files:
        overrides["checkpoint_dir"] = arguments.output_dir
    if "state" not in files:
        overrides["state"] = "WARNING"
    for text in rest:
        key, equals, value = text[2:].partition("=")
        if not text.startswith("--") or not equals or not key:
            raise ConfigError(f"'{text}' is not understood; settings are given as --key=value")
        overrides[key] = parse_value(value)
    for key in ("data_path", "seed", "preset"):
        if getattr(arguments, key, None) is not None:
            overrides[key] = getattr(arguments, key)
    return overrides


def settle(arguments, key: str, default: str) -> None:
    """Put the ``dataset`` or ``model`` of the command line, of the configuration files, or ``default`` in its place.

    Raises:
        ConfigError: command line and files name different ones.
    """
    given, of_file = getattr(arguments, key), merged(arguments.config_files).get(key)
    if of_file is not None and not isinstance(of_file, str):
        raise ConfigError(f"{key}: {of_file!r} is not allowed; allowed: a text")
    if given is not None and of_file is not None and given != of_file:
        raise ConfigError(f"{key}: the command line says '{given}', the configuration files '{of_file}'; leave one out")
    setattr(arguments, key, given if given is not None else default if of_file is None else of_file)


def run(arguments, rest: list[str]) -> int:
    settle(arguments, "dataset", "ml-100k")
    settle(arguments, "model", "TokenRec")
    overrides = overrides_of(arguments, rest)
    models = [name for name in arguments.model.split(",") if name]
    if not models:
        raise ConfigError("--model: at least one name is needed")
    preset = overrides.pop("preset", None)
    if arguments.resume:
        overrides["resume"] = True
    given = {"seed": 2020, "preset": "tuned", **merged(arguments.config_files), **overrides}
    shown = preset or given["preset"]
    name = "-".join([arguments.dataset, *models, *([str(shown)] if shown != "tuned" else []), str(given["seed"])])
    path = arguments.result_file or Path(arguments.output_dir) / f"{name}.json"
    with process_group(given.get("distributed_timeout", 600), given.get("use_gpu", True)):
        if not is_first():
            overrides.update(state="ERROR", show_progress=False)
        if active():
            overrides.setdefault("gpu_id", os.environ.get("LOCAL_RANK", "0"))
        result = run_models(models, arguments.dataset, arguments.config_files, overrides, preset, result_file=path)
        if is_first():
            print(summary(result))
            print(f"\nresult file: {path}")
    return 0


def summary(result: dict) -> str:
    """One table, model x metric, validation and test; TokenRec's collaborative stage stands below it, and below the
    table what is wrong with a model (``health.py``)."""
    rows, metrics = [], None
    for row in result["models"]:
        entries = [(row["name"] + (f" ({row['preset']})" if row["preset"] else ""), row)]
        for score, metrics_of in (row.get("collaborative") or {}).items():
            entries.append((f"  its collaborative stage, {score}", metrics_of))
        for label, entry in entries:
            metrics = metrics or list(entry["valid"])
            rows += [[label, split, *(entry[split][metric] for metric in metrics)] for split in ("valid", "test")]
    data = result["dataset"]
    findings = [f"{row['name']}: {finding}" for row in result["models"] for finding in row["health"]["findings"]]
    title = f"{data['name']}: {data['users']} users, {data['items']} items, {data['interactions']} interactions"
    return f"\n{title}; seed {result['seed']}\n" + tabulate(
        rows, headers=["model", "split", *metrics], floatfmt=".4f"
    ) + "".join(f"\nhealth: {finding}" for finding in findings)
