"""Entry point of ``recbole-tokenrec``. A user's mistake is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys

from recbole_tokenrec.errors import TokenRecError, is_want_of_memory
from recbole_tokenrec.measure import keep_freed_memory
from recbole_tokenrec.training.distributed import leave

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    from recbole_tokenrec.cli import artefacts, doctor, experiment, recommend, run, score, serve, sweep

    parser = argparse.ArgumentParser(prog="recbole-tokenrec", description="TokenRec and its baselines in RecBole.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (run, experiment, recommend, score, artefacts, serve, sweep, doctor):
        command.add_parser(subparsers)
    arguments, rest = parser.parse_known_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_freed_memory()
    try:
        code = arguments.handler(arguments, rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads, e.g. head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it ends
        return 128 + getattr(signal, "SIGPIPE", 13)  # Windows has none
    except TokenRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        print(f"error: {error.filename or 'the output'} cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_want_of_memory(error):
            raise
        print("error: there is not enough memory for these sizes; lower batch, embedding or codebook sizes "
              f"({str(error).splitlines()[0] if str(error) else 'MemoryError'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def command(argv: list[str] | None = None) -> None:
    """:func:`main` as a process of its own, which ends with its exit code."""
    code = main(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
