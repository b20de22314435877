"""Score very many users by ``recbole-tokenrec score``: peak memory over their number, a worker killed on the way.

A small TokenRec is trained on 2,000 synthetic users; the others come to it by ``update``, each with a history of his
own, so that the checkpoint knows them all. Every size is one command of its own, as a user would give it. Of the last
and largest one worker is killed by SIGKILL once a part is there. The Parquet is then read part by part: every user of
the file in its order, each once, with k different items, best first.

What is there of an earlier call in ``--folder`` is used again: model, users, and parts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import begin, finish, parser, workers_of
from benchmarks.workload import QUIET

ITEMS, PER_USER, TRAINED = 1000, 5, 2000
TINY = {
    "preset": "user_id_only", "cf_embedding_size": 32, "cf_epochs": 3, "cf_eval_step": 3, "mq_num_codebooks": 4,
    "mq_user_num_codebooks": 4, "mq_codebook_size": 64, "mq_codeword_dim": 16, "mq_hidden_size": 32, "mq_epochs": 1,
    "mq_min_steps": 20, "llm_epochs": 1, "llm_projection_size": 32, "stage_cache": False,
}  # fmt: skip


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "score_many", rounds=1)
    arguments_parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments_parser.add_argument("--workers", type=int, default=2)
    arguments_parser.add_argument("--k", type=int, default=5)
    arguments_parser.add_argument("--shard_size", type=int, default=10_000)
    arguments_parser.add_argument("--batch", type=int, default=4096)
    arguments_parser.add_argument("--folder", type=Path, required=True, help="of model, users and Parquet")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    sizes = sorted(arguments.users)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.folder / f"model-{sizes[-1]}.pth"
    if not checkpoint.exists():
        build(checkpoint, sizes[-1], arguments)
    rows = []
    for size in sizes:
        row = scored(checkpoint, size, arguments, kill=size == sizes[-1])
        rows.append({**row, **checked(size, arguments)})
        print(rows[-1], flush=True)
        finish(arguments, before, {"checkpoint_mb": checkpoint.stat().st_size / 2**20, "rows": rows})


def histories(first: int, last: int, seed: int) -> np.ndarray:
    """Items (last - first, PER_USER) of users ``first`` … ``last - 1``; nine of ten are of the user's own taste."""
    rng = np.random.default_rng([seed, first])
    taste = rng.integers(ITEMS // 20, size=(last - first, 1))
    items = taste * 20 + rng.integers(20, size=(last - first, PER_USER))
    anywhere = rng.random(items.shape) < 0.1
    items[anywhere] = rng.integers(ITEMS, size=int(anywhere.sum()))
    return items


def frame_of(first: int, last: int, seed: int) -> pd.DataFrame:
    items = histories(first, last, seed)
    users = np.repeat(np.arange(first, last), PER_USER)
    return pd.DataFrame({"user_id": [f"u{user}" for user in users.tolist()],
                         "item_id": [f"i{item}" for item in items.ravel().tolist()]})  # fmt: skip


def build(checkpoint: Path, users: int, arguments) -> None:
    """A checkpoint that knows ``users`` users."""
    import recbole_tokenrec

    trained = arguments.folder / "trained"
    if not list(trained.glob("*.pth")):
        train(trained, arguments)
    model = recbole_tokenrec.load(trained)
    step = 500_000
    for first in range(TRAINED, users, step):
        model.update(frame_of(first, min(first + step, users), arguments.seed))
        print(f"{model.data.user_num - 1} users", flush=True)
    model.save(checkpoint)


def train(folder: Path, arguments) -> None:
    from recbole_tokenrec.pipeline import run_models

    data = arguments.folder / "data" / "synthetic"
    data.mkdir(parents=True, exist_ok=True)
    frame = frame_of(0, TRAINED, arguments.seed)
    frame["timestamp"] = np.tile(np.arange(PER_USER), TRAINED)
    columns = {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
    frame.rename(columns=columns).to_csv(data / "synthetic.inter", sep="\t", index=False)
    keys = {**QUIET, **TINY, "data_path": str(data.parent), "checkpoint_dir": str(folder),
            "seed": arguments.seed, "llm_backbone": tiny_backbone(arguments.folder / "backbone")}  # fmt: skip
    run_models(["TokenRec"], "synthetic", (), keys)


def tiny_backbone(folder: Path) -> str:
    """A T5 of one layer and 32 dimensions, saved as ``save_pretrained`` does: what is measured is the scoring."""
    import torch
    from transformers import T5Config, T5Model

    from recbole_tokenrec.llm.backbone import word_level_tokenizer
    from recbole_tokenrec.llm.prompts import all_texts

    tokenizer = word_level_tokenizer(all_texts())
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    T5Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scored(checkpoint: Path, size: int, arguments, kill: bool) -> dict:
    """Run the command; seconds, and the peak memory of its largest process."""
    users, output = arguments.folder / f"users-{size}.txt", arguments.folder / f"scores-{size}"
    with open(users, "w", encoding="utf-8") as file:
        file.writelines(f"u{user}\n" for user in range(size))
    command = [
        sys.executable, "-m", "recbole_tokenrec.cli.main", "score", "--checkpoint", str(checkpoint), "--users_file",
        str(users), "--output", str(output),
        *(f"--{name}={getattr(arguments, name)}" for name in ("workers", "k", "shard_size", "batch")),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    began, killed = time.perf_counter(), None
    process = subprocess.Popen(command, env=environment)
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while kill and killed is None and os.waitid(os.P_PID, process.pid, ended) is None:
        time.sleep(0.05)
        if list(output.glob("part-*.parquet")) and (workers := workers_of(process.pid)):
            killed = f"{len(list(output.glob('part-*.parquet')))} parts were there"
            os.kill(workers[0], signal.SIGKILL)
    _, status, used = os.wait4(process.pid, 0)  # with the largest of the processes that it waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"score ended with exit code {process.returncode}")
    return {"users": size, "seconds": time.perf_counter() - began, "cpu_seconds": used.ru_utime + used.ru_stime,
            "peak_rss_mb": used.ru_maxrss / 1024, "worker_killed_when": killed}  # fmt: skip


def checked(size: int, arguments) -> dict:
    """Read the Parquet part by part; stops if a user is missing, there twice or out of place, or an item is wrong."""
    import json

    from pyarrow import parquet

    output, k = arguments.folder / f"scores-{size}", arguments.k
    summary = json.loads((output / "score.json").read_text())
    files, place = sorted(output.glob("part-*.parquet")), 0
    for file in files:
        table = parquet.read_table(file)
        users = np.array([int(user[1:]) for user in table["user_id"].to_pylist()]).reshape(-1, k)
        items = np.array([int(item[1:]) for item in table["item_id"].to_pylist()]).reshape(-1, k)
        scores = table["score"].to_numpy().reshape(-1, k)
        expected = np.arange(place, place + len(users))
        if not ((users == expected[:, None]).all() and (np.sort(items)[:, 1:] != np.sort(items)[:, :-1]).all()):
            sys.exit(f"{file}: a user or an item is missing or there twice")
        if not ((table["rank"].to_numpy().reshape(-1, k) == np.arange(1, k + 1)).all() and
                (np.diff(scores) <= 0).all() and set(table["kind"].to_pylist()) == {"hot"}):  # fmt: skip
            sys.exit(f"{file}: ranks, scores or kinds are not what they should be")
        place += len(users)
    left = sorted(path.name for path in output.iterdir() if path.name.startswith("."))
    if place != size or len(files) != summary["parts"] or left:
        found = f"{place} users in {len(files)} parts, and {left}"
        sys.exit(f"{output}: {found}; expected {size} in {summary['parts']}, and nothing else")
    return {"parts": len(files), "deaths": summary["deaths"], "users_found": place, "rows": place * k}


if __name__ == "__main__":
    main()
