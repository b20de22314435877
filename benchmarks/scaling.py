"""Seconds per epoch of every stage and peak memory over the number of users, and how straight the line is.

Synthetic data: users of ``--groups`` tastes, 20 interactions each, mostly with items of their own taste, a fixed
catalogue. Each size runs in a process of its own, so that its peak of memory is its own; sizes that the JSON file holds
already (same arguments, same preset) are kept, so that a long series can be run in pieces. CPU seconds are fitted: they
do not depend on what else the machine does.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import begin, finish, in_a_process, parser
from benchmarks.workload import QUIET
from recbole_tokenrec.paths import properties_dir

PER_USER = 20
STAGES = ("cf", "user_codebooks", "user_tokenizer", "item_tokenizer", "llm", "evaluation")


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "scaling", rounds=1)
    arguments_parser.add_argument("--users", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    arguments_parser.add_argument("--items", type=int, default=5000)
    arguments_parser.add_argument("--groups", type=int, default=50)
    arguments_parser.add_argument("--preset", default="user_id_only")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    rows = kept(arguments)
    for users in arguments.users:
        if users not in {row["users"] for row in rows}:
            rows.append(in_a_process(one_size, users, arguments))
            rows.sort(key=lambda row: row["users"])
            finish(arguments, before, {"preset": preset_text(arguments), "rows": rows, "fits": fits(rows)})


def kept(arguments) -> list[dict]:
    """Rows of an earlier piece of the same series."""
    if not arguments.out.exists():
        return []
    content = json.loads(arguments.out.read_text())
    deciding = ("items", "groups", "preset", "seed", "threads")
    same = all(content["arguments"].get(key) == getattr(arguments, key) for key in deciding)
    return content["rows"] if same and content.get("preset") == preset_text(arguments) else []


def preset_text(arguments) -> str:
    """What the preset says today: rows of another day's preset are no rows of this series."""
    return (properties_dir() / "preset" / f"{arguments.preset}.yaml").read_text(encoding="utf-8")


def one_size(users: int, arguments) -> dict:
    """Measure one size, in a process of its own."""
    begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), users, arguments)
        return epochs(users, folder, arguments)


def write_data(folder: Path, users: int, arguments) -> None:
    """``synthetic.inter`` in RecBole's format: nine of ten interactions within the user's taste."""
    rng = np.random.default_rng(arguments.seed)
    per_group = arguments.items // arguments.groups
    taste = rng.integers(arguments.groups, size=(users, 1))
    items = taste * per_group + rng.integers(per_group, size=(users, PER_USER))
    anywhere = rng.random((users, PER_USER)) < 0.1
    items[anywhere] = rng.integers(arguments.items, size=int(anywhere.sum()))
    (folder / "synthetic").mkdir()
    with open(folder / "synthetic" / "synthetic.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, row in enumerate(items.tolist()):
            file.writelines(f"{user}\t{item}\t{when}\n" for when, item in enumerate(row))


def epochs(users: int, folder: str, arguments) -> dict:
    """CPU seconds of one epoch of each stage, of the start of users' codebooks and of one evaluation; peak memory."""
    import torch
    from recbole.utils import get_model, get_trainer, init_seed

    from recbole_tokenrec.configuration import make_config
    from recbole_tokenrec.datacheck import load_data
    from recbole_tokenrec.measure import peak_rss_mb

    once = {"cf_epochs": 1, "mq_epochs": 1, "mq_min_steps": 1, "llm_epochs": 1}
    once.update(stage_cache=False, resume=False, checkpoint_every_seconds=None)
    keys = {**QUIET, "data_path": folder, "preset": arguments.preset, "seed": arguments.seed, **once}
    config = make_config("TokenRec", "synthetic", overrides=keys)
    init_seed(arguments.seed, True)
    start = time.process_time()
    train_data, _, test_data = load_data(config)[1]
    row = {"users": users, "data_cpu_s": time.process_time() - start}
    model = get_model("TokenRec")(config, train_data._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    work = trainer._trained_or_restored

    def timed(stage, *others):
        start = time.process_time()
        report = work(stage, *others)
        name = "cf" if stage.name.startswith("cf") else stage.name  # all collaborative models, and their weights
        row[f"{name}_cpu_s"] = row.get(f"{name}_cpu_s", 0.0) + time.process_time() - start
        return report

    def start_codebooks(*vectors_and_seed):  # once, whatever the number of epochs: not the tokenizer's time
        start = time.process_time()
        type(model.user_tokenizer).start_from(model.user_tokenizer, *vectors_and_seed)
        row["user_codebooks_cpu_s"] = time.process_time() - start

    trainer._trained_or_restored = timed
    model.user_tokenizer.start_from = start_codebooks
    trainer.fit(train_data, verbose=False, saved=False)
    row["user_tokenizer_cpu_s"] -= row["user_codebooks_cpu_s"]
    start = time.process_time()
    trainer.evaluate(test_data, load_best_model=False)
    row["evaluation_cpu_s"] = time.process_time() - start
    row["peak_rss_mb"] = peak_rss_mb()
    row["threads"] = torch.get_num_threads()
    return row


def fits(rows: list[dict]) -> dict:
    """Straight lines through seconds and memory over users: slope, intercept and R^2."""
    if len(rows) < 3:
        return {}
    x = np.array([row["users"] for row in rows], dtype=float)
    found = {}
    for name in [f"{stage}_cpu_s" for stage in STAGES] + ["peak_rss_mb"]:
        y = np.array([row[name] for row in rows])
        slope, intercept = np.polyfit(x, y, 1)
        residual = ((y - slope * x - intercept) ** 2).sum()
        found[name] = {
            "per_1000_users": 1000 * slope,
            "intercept": intercept,
            "r2": 1 - residual / max(((y - y.mean()) ** 2).sum(), 1e-12),
        }
    return found


if __name__ == "__main__":
    main()
