"""A random part of a data set's users as a data set of its own, for trying a preset on small data.

    python -m benchmarks.subset beauty 40 --data_path DATA --to PARTS

writes ``PARTS/beauty-40/beauty-40.inter`` with the interactions of 40 per cent of the users. Users and items that are
left with few interactions are for RecBole's own filters (``user_inter_num_interval``, ``item_inter_num_interval``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("percent", type=int, help="of the users, 1 to 99")
    parser.add_argument("--data_path", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument("--to", type=Path, required=True, help="folder of the new data set")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: 1)")
    arguments = parser.parse_args()
    if not 1 <= arguments.percent <= 99:
        parser.error(f"percent: {arguments.percent} is not allowed; allowed: 1 to 99")
    file = arguments.data_path / arguments.dataset / f"{arguments.dataset}.inter"
    if not file.is_file():
        parser.error(f"{file} does not exist")
    rows = pd.read_csv(file, sep="\t", dtype=str)
    if not any("user_id" in column for column in rows):
        parser.error(f"{file} has no column user_id; it has {', '.join(rows)}")
    part = drawn(rows, arguments.percent, arguments.seed)
    name = f"{arguments.dataset}-{arguments.percent}"
    (arguments.to / name).mkdir(parents=True, exist_ok=True)
    part.to_csv(arguments.to / name / f"{name}.inter", sep="\t", index=False)
    print(f"{arguments.to / name}: {len(part)} of {len(rows)} interactions")


def drawn(rows: pd.DataFrame, percent: int, seed: int) -> pd.DataFrame:
    """The rows of ``percent`` per cent of the users; a user's rows stay together and in order."""
    users = rows.filter(like="user_id").iloc[:, 0]
    names = users.unique()
    chosen = np.random.default_rng(seed).choice(names, percent * len(names) // 100, replace=False)
    return rows[users.isin(set(chosen))]


if __name__ == "__main__":
    main()
