"""``recbole-tokenrec recommend``: top-k items for the data's own ids, from a checkpoint or an exported folder.

Known users get what the model learnt of them; ``--history`` stands for somebody new. Users whom the model does not
know get the most popular items (kind: cold).
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pandas as pd

from recbole_tokenrec.cli.common import no_more, open_model, read_list
from recbole_tokenrec.errors import ConfigError


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "recommend", help="top-k items for raw ids", description=__doc__.split("\n\n", 1)[1], allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a folder that `export` wrote")
    parser.add_argument("--data_path", help="folder of the data set, if a RecBole checkpoint's data has moved")
    parser.add_argument("--users", help="ID[,ID...] (default: everybody whom the model knows)")
    parser.add_argument("--users_file", metavar="FILE", help="one user id a line")
    parser.add_argument("--history", help="ITEM[,ITEM...], oldest first: somebody who took these")
    parser.add_argument("--candidates_file", metavar="FILE", help="one item id a line: choose among these")
    parser.add_argument("--k", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--include_seen", action="store_true", help="do not leave out what the user took")
    parser.add_argument("--index", default="exact", help="exact (default), faiss")
    parser.add_argument("--format", default="table", choices=("table", "csv", "json"), help="(default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing")
    parser.set_defaults(handler=recommend)


def recommend(arguments, rest: list[str]) -> int:
    no_more(rest)
    if arguments.index not in ("exact", "faiss"):
        raise ConfigError(f"--index: {arguments.index!r} is not allowed; allowed: exact, faiss")
    chosen = [name for name in ("users", "users_file", "history") if getattr(arguments, name) is not None]
    if len(chosen) > 1:
        raise ConfigError(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    users = history = None
    if arguments.users is not None:
        users = split(arguments.users, "users")
    elif arguments.users_file is not None:
        users = read_list(arguments.users_file)
    elif arguments.history is not None:
        history = split(arguments.history, "history")
    candidates = None if arguments.candidates_file is None else read_list(arguments.candidates_file)
    model = open_model(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = model.recommend(users, history, arguments.k, not arguments.include_seen, candidates)
    for warning in caught:
        print(f"note: {warning.message}", file=sys.stderr)
    if model.data.titles is not None:
        frame.insert(2, "title", [model.title(item) for item in frame["item_id"]])
    text = rendered(frame, arguments.format)
    if arguments.output:
        try:
            Path(arguments.output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output: {arguments.output} cannot be written ({error.strerror})") from error
    else:
        print(text, end="")
    return 0


def split(text: str, name: str) -> list[str]:
    """``a,b`` as a list.

    Raises:
        ConfigError: nothing but commas.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"--{name}: at least one id is needed")
    return parts


def rendered(frame: pd.DataFrame, form: str) -> str:
    """The table as text that ends in a line break."""
    if form == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if form == "json":
        return frame.to_json(orient="records", force_ascii=False, indent=1) + "\n"
    from tabulate import tabulate

    texts = [place for place, name in enumerate(frame.columns) if name not in ("rank", "score")]
    return tabulate(frame, headers="keys", showindex=False, floatfmt=".4f", disable_numparse=texts) + "\n"
