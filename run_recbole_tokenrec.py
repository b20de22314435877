"""``python run_recbole_tokenrec.py --dataset ml-1m``: the same as ``recbole-tokenrec run --dataset ml-1m``."""

import sys

from recbole_tokenrec.cli.main import command

if __name__ == "__main__":
    command(["run", *sys.argv[1:]])
