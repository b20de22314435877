"""TokenRec from the data file to the metrics: minutes of every stage, processor time and peak memory.

    python -m benchmarks.end_to_end output/experiments

Nothing is trained here. ``recbole-tokenrec experiment …`` keeps a record of each training, with what it took; this
collects TokenRec's from the folders named, the seed's first of each data set and preset. A stage that came out of the
stage cache counts with the seconds that it took when it was trained; the processor's seconds are then not known.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness import begin, finish, parser

LABELS = ("TokenRec", "TokenRec (user-ID-only)")  # rows of ``experiment overall`` that are a preset as it is
PARTS = ("data", "build", "cf", "tokenizer", "llm", "evaluation")


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "end_to_end", rounds=1)
    arguments_parser.add_argument("folders", type=Path, nargs="+", help="of experiments, searched for runs/*.json")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    finish(arguments, before, {"rows": rows_of(arguments.folders)})


def rows_of(folders) -> list[dict]:
    """One row for each data set and preset."""
    found = {}
    for file in sorted(file for folder in folders for file in folder.rglob("runs/*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("label") in LABELS and "stages" in record:
            row = row_of(record)
            found.setdefault((row["dataset"], row["preset"], row["seed"]), row)
    first = {}
    for key in sorted(found):
        first.setdefault(key[:2], found[key])
    return list(first.values())


def row_of(record: dict) -> dict:
    """Seconds by part and in all, those of the processor (None if a stage came out of the cache), peak memory."""
    seconds = {part: record["seconds"][part] for part in PARTS}
    cached = any(stage["cached"] for stage in record["stages"].values())
    return {
        "dataset": record["data"]["name"],
        "preset": record["config"]["preset"],
        "seed": record["seed"],
        "users": record["data"]["users"],
        "interactions": record["data"]["interactions"],
        "seconds": {**seconds, "all": sum(seconds.values())},
        "cpu_seconds": None if cached or not record.get("cpu_seconds") else sum(record["cpu_seconds"].values()),
        "cached": cached,
        "peak_rss_mb": record["peak_rss_mb"],
        "stage_peak_rss_mb": {name: stage["peak_rss_mb"] for name, stage in record["stages"].items()},
    }


if __name__ == "__main__":
    main()
