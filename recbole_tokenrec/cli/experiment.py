"""``recbole-tokenrec experiment``: the paper's tables and figures on your machine.

Finished trainings are kept under OUTPUT_DIR/experiments/NAME/DATASET/runs; the same command goes on where it stopped.
Every key of RecBole or of our models can be given as ``--key=value`` and then holds for all rows.
"""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

from recbole_tokenrec.cli.run import add_common_arguments, overrides_of, settle
from recbole_tokenrec.configuration import NO_MATTER, merged
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments import NAMES, REPORTED


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "experiment",
        help="the paper's tables and figures",
        description=__doc__.split("\n\n")[1],
        allow_abbrev=False,
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in NAMES:
        module = importlib.import_module(f"recbole_tokenrec.experiments.{name}")
        own = names.add_parser(name, help=module.TITLE, description=module.TITLE, allow_abbrev=False)
        add_common_arguments(own)
        own.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds SEED … SEED+N-1 (default: 1)")
        module.add_arguments(own)
        own.set_defaults(handler=run, command_text=None)


def run(arguments, rest: list[str]) -> int:
    from recbole_tokenrec.experiments.report import need_matplotlib, write_report
    from recbole_tokenrec.experiments.runs import Bench

    need_matplotlib()
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds: {arguments.seeds} is not allowed; allowed: int in [1, inf)")
    settle(arguments, "dataset", "ml-100k")
    if hasattr(arguments, "model"):
        settle(arguments, "model", arguments.model)
    elif model := merged(arguments.config_files).get("model"):
        raise ConfigError(f"model: {model!r} was set, but the rows of an experiment have models of their own")
    overrides = overrides_of(arguments, rest)
    given = {"seed": 2020, "preset": "tuned", **merged(arguments.config_files), **overrides}
    first = given["seed"]
    overrides.pop("seed", None)
    if getattr(arguments, "preset", "") is None:  # an experiment of one preset, which the command does not name
        arguments.preset = given["preset"]
    if not isinstance(first, int):
        raise ConfigError(f"seed: {first!r} is not allowed; allowed: int in [0, inf)")
    folder = Path(arguments.output_dir) / "experiments" / arguments.name / arguments.dataset
    bench = Bench(
        arguments.dataset,
        folder,
        tuple(range(first, first + arguments.seeds)),
        tuple(arguments.config_files),
        overrides,
        REPORTED[arguments.name],
    )
    module = importlib.import_module(f"recbole_tokenrec.experiments.{arguments.name}")
    report = module.run(bench, arguments)
    paths = write_report(report, folder, _command(arguments, module, rest, first))
    print(paths[1].read_text(encoding="utf-8"))
    print("\n".join(f"written: {path}" for path in paths))
    return 0


def _command(arguments, module, rest: list[str], first: int) -> str:
    """The command to type for the same numbers, without what no number depends on, such as where files lie.

    ``first``: the first seed.
    """
    words = ["recbole-tokenrec", "experiment", arguments.name, "--dataset", arguments.dataset]
    if arguments.seeds != 1:
        words += ["--seeds", str(arguments.seeds)]
    for key, value in vars(arguments).items():
        if key in getattr(module, "ARGUMENTS", ()) and value is not None:
            words += [f"--{key}", str(value)]
    if first != 2020:
        words += ["--seed", str(first)]
    if arguments.config_files:
        words += ["--config_files", *arguments.config_files]
    if arguments.data_path:
        words += ["--data_path", "DATA"]
    return shlex.join(words + [text for text in rest if text.lstrip("-").split("=")[0] not in NO_MATTER])
