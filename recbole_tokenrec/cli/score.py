"""``recbole-tokenrec score``: top-k items of very many users, as Parquet.

Shards of the users' file are dealt out to processes; one that dies is replaced and its shard scored anew. The same
command goes on where it stopped.
"""

from __future__ import annotations

from recbole_tokenrec.cli.common import no_more
from recbole_tokenrec.errors import ConfigError


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "score", help="top-k items of very many users", description=__doc__.split("\n\n", 1)[1], allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a folder that `export` wrote")
    parser.add_argument("--data_path", help="folder of the data set, if a RecBole checkpoint's data has moved")
    parser.add_argument("--users_file", required=True, metavar="FILE", help="one user id a line")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the part-NNNNN.parquet")
    parser.add_argument("--k", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--shard_size", type=int, default=10_000, help="users of a part (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="most users at once (default: %(default)s)")
    parser.add_argument("--memory_budget_gb", type=float, default=2.0, help="of each process (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.set_defaults(handler=run)


def run(arguments, rest: list[str]) -> int:
    from recbole_tokenrec.scoring import score

    no_more(rest)
    numbers = {name: getattr(arguments, name) for name in ("k", "shard_size", "batch", "workers")}
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"--{name}: {value} is not allowed; allowed: int in [1, inf)")
    summary = score(arguments.checkpoint, arguments.users_file, arguments.output, **numbers,
                    memory_budget_gb=arguments.memory_budget_gb, data_path=arguments.data_path)  # fmt: skip
    print(f"{summary['users']} users in {summary['parts']} parts: {arguments.output}")
    return 0
