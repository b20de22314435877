"""TokenRec from the data file to the metrics: minutes of every stage, processor time and peak memory.

    python -m benchmarks.end_to_end output

Nothing is trained here. ``recbole-tokenrec run`` and ``experiment`` keep records of what each training took; this
collects TokenRec's from the folders named, one of each data set and preset: of those that were trained from end to end
the first seed's. Rows of data sets and presets that are in none of the folders stay as they were, with their own date
and commit. A stage that came out of the stage cache counts with the seconds that it took when it was trained; the
processor's seconds are then not known.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness import begin, finish, parser
from recbole_tokenrec.experiments.runs import cost_of

LABELS = ("TokenRec", "TokenRec (user-ID-only)")  # rows of ``experiment overall`` that are a preset as it is
PARTS = ("data", "build", "cf", "tokenizer", "llm", "evaluation")


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "end_to_end", rounds=1)
    arguments_parser.add_argument("folders", type=Path, nargs="+", help="--output_dir of runs and experiments")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    rows = rows_of(arguments.folders)
    found = {(row["dataset"], row["preset"]) for row in rows}
    rows += [row for row in rows_before(arguments.out) if (row["dataset"], row["preset"]) not in found]
    finish(arguments, before, {"rows": sorted(rows, key=lambda row: (row["dataset"], row["preset"]))})


def rows_before(file: Path) -> list[dict]:
    """What the file holds from earlier collections, each row with the date and commit of its own."""
    if not file.exists():
        return []
    content = json.loads(file.read_text(encoding="utf-8"))
    earlier = {"date": content["machine"]["date"], "commit": content["commit"]}
    return [{**earlier, **row} for row in content["rows"]]


def rows_of(folders) -> list[dict]:
    """One row for each data set and preset."""
    rows = []
    for file in sorted(file for folder in folders for file in folder.rglob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            continue
        if content.get("label") in LABELS and "stages" in content:  # of an experiment
            rows.append(row_of(content, content["data"], content["seed"]))
        for model in content.get("models", ()):  # of a run
            if model["name"] == "TokenRec":
                rows.append(row_of(model, content["dataset"], content["seed"]))
    best = {}
    for row in sorted(rows, key=lambda row: (row["dataset"], row["preset"], row["cached"], row["seed"])):
        best.setdefault((row["dataset"], row["preset"]), row)
    return list(best.values())


def row_of(record: dict, data: dict, seed: int) -> dict:
    """Seconds by part and in all, those of the processor (None if a stage came out of the cache), peak memory."""
    seconds = {part: record["seconds"][part] for part in PARTS}
    cached = any(stage["cached"] for stage in record["stages"].values()) or not record.get("cpu_seconds")
    return {
        "dataset": data["name"],
        "preset": record["config"]["preset"],
        "seed": seed,
        "users": data["users"],
        "interactions": data["interactions"],
        "seconds": {**seconds, "all": sum(seconds.values())},
        "cpu_seconds": None if cached else sum(record["cpu_seconds"].values()),
        "cached": cached,
        "peak_rss_mb": cost_of(record)[1],
    }


if __name__ == "__main__":
    main()
