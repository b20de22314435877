"""``recbole-tokenrec sweep``: search settings by the validation metric, in several processes.

FILE names keys with their values: ``mq_num_codebooks: [2, 4]`` or ``llm_learning_rate: {low: 1e-4, high: 1e-2, log:
true}``. Lists alone are tried in every combination. The same command goes on where it stopped, also beside others.
"""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from recbole_tokenrec.cli.run import add_common_arguments, overrides_of, settle
from recbole_tokenrec.configuration import merged
from recbole_tokenrec.errors import ConfigError


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "sweep", help="search settings with Optuna", description=__doc__.split("\n\n")[1], allow_abbrev=False
    )
    add_common_arguments(parser)
    parser.add_argument("--space", required=True, metavar="FILE", help="YAML file of keys with their values")
    parser.add_argument("--model", help="ours or RecBole's (default: TokenRec)")
    parser.add_argument("--preset", help="for TokenRec")
    parser.add_argument("--trials", type=int, help="how many (default: every combination of lists, else 20)")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine (default: %(default)s)")
    parser.add_argument("--storage", help="Optuna's storage (default: SQLite in OUTPUT_DIR/sweeps/NAME)")
    parser.add_argument("--name", help="of the sweep (default: MODEL-DATASET)")
    parser.set_defaults(handler=run)


def run(arguments, rest: list[str]) -> int:
    from recbole_tokenrec.sweep import Sweep, check_space, grid, run_sweep

    settle(arguments, "dataset", "ml-100k")
    settle(arguments, "model", "TokenRec")
    for key in ("trials", "workers"):
        value = getattr(arguments, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key}: {value} is not allowed; allowed: int in [1, inf)")
    space = check_space(merged([arguments.space]))
    combinations = grid(space)
    overrides = overrides_of(arguments, rest)
    preset = overrides.pop("preset", None)
    if arguments.name is not None and (arguments.name in ("", ".", "..") or set(arguments.name) & set("/\\")):
        raise ConfigError(f"--name: {arguments.name!r} is not allowed; allowed: a name, without a path")
    name = arguments.name or f"{arguments.model}-{arguments.dataset}"
    folder = (Path(arguments.output_dir) / "sweeps" / name).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir: the folder {folder} cannot be made ({error.strerror})") from error
    sweep = Sweep(
        model=arguments.model,
        dataset=arguments.dataset,
        space=space,
        trials=arguments.trials or (len(combinations) if combinations else 20),
        folder=str(folder),
        storage=arguments.storage or f"sqlite:///{folder / 'sweep.db'}",
        name=name,
        config_files=tuple(arguments.config_files),
        overrides=overrides,
        preset=preset,
    )
    result = run_sweep(sweep, arguments.workers)
    rows = [[t["number"], *t["keys"].values(), t["value"], " ".join(t.get("cached", []))] for t in result["trials"]]
    headers = ["trial", *space, "valid", "stages from the cache"]
    print(tabulate(rows, headers=headers, floatfmt=".4f"))
    for trial in result["trials"]:
        if "error" in trial:
            print(f"trial {trial['number']} failed: {trial['error']}")
    print(f"\nresult file: {folder / 'sweep.json'}")
    return 0
