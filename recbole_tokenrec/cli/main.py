"""Entry point of ``recbole-tokenrec``. A user's mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import os
import sys

from recbole_tokenrec.errors import TokenRecError
from recbole_tokenrec.measure import keep_freed_memory


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    from recbole_tokenrec.cli import artefacts, doctor, experiment, recommend, run, serve

    parser = argparse.ArgumentParser(prog="recbole-tokenrec", description="TokenRec and its baselines in RecBole.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (run, experiment, recommend, artefacts, serve, doctor):
        command.add_parser(subparsers)
    arguments, rest = parser.parse_known_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_freed_memory()
    try:
        return arguments.handler(arguments, rest)
    except TokenRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
