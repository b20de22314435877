"""What a trained TokenRec costs and keeps in use: loading, answers, equality with RecBole's scores, the export.

    python benchmarks/use.py --checkpoint C [--users 1,2,3] [--history i1,i2,i3,i4,i5]

Prints the recommendations for these users and this history, and JSON lines with process times in seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from recbole.data.interaction import Interaction

import recbole_tokenrec
from recbole_tokenrec.cli.recommend import rendered, split


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--users", help="ID[,ID…] (default: the first three)")
    parser.add_argument("--history", help="ITEM[,ITEM…] (default: the five most popular)")
    arguments = parser.parse_args()
    clock = time.process_time()
    model = recbole_tokenrec.load(arguments.checkpoint)
    report("load", clock)
    users = split(arguments.users, "users") if arguments.users else model.users[:3]
    popular = [model.data.items[item] for item in model.data.popularity.argsort(descending=True)[:5].tolist()]
    history = split(arguments.history, "history") if arguments.history else popular

    clock = time.process_time()
    frames = [model.recommend(users, k=10), model.recommend(histories=history, k=10)]
    report("recommend for these users and this history, first answers", clock)
    for user, items in [*((user, model.history(user)[-5:]) for user in users), ("the history", history)]:
        print(f"{user}: " + "; ".join(model.title(item) or item for item in items))
    for frame in frames:
        frame.insert(2, "title", [model.title(item) for item in frame["item_id"]])
        print(rendered(frame, "table"))

    same = equal_to_full_sort(model, model.users[:1000])
    report("users of 1,000 whose top 20 is that of full_sort_predict", None, same)
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model.export(Path(folder) / "export")
        again = recbole_tokenrec.load(Path(folder) / "export")
    report("export and load", clock)
    left, right = (r.recommend(model.users[:1000], k=20) for r in (model, again))
    report("export: 1,000 users have the same top 20 and scores", None, bool(left.equals(right)))
    return 0


@torch.no_grad()
def equal_to_full_sort(recommender, users: list[str]) -> int:
    """How many of the users get, in the same order, what masked ``full_sort_predict`` ranks first.

    Two neighbours whose scores differ by less than 1e-6 may stand either way round.
    """
    data, model, equal = recommender.data, recommender.model, 0
    for start in range(0, len(users), 128):
        part = users[start : start + 128]
        numbers = torch.tensor([data.user_numbers[user] for user in part])
        scores = model.full_sort_predict(Interaction({data.uid_field: numbers})).view(len(part), -1)
        scores[:, 0] = -torch.inf
        rows, places = data.histories.places(numbers)
        scores[rows, data.histories.items[places]] = -torch.inf
        best = scores.topk(20).values
        frame = recommender.recommend(part, k=20)
        for row, (_, own) in enumerate(frame.groupby("user_id", sort=False)):
            items = [data.item_numbers[item] for item in own["item_id"]]
            equal += bool(torch.allclose(scores[row, items], best[row], rtol=0, atol=1e-6))
    return equal


def report(what: str, clock: float | None, value=None) -> None:
    print(json.dumps({what: value if clock is None else round(time.process_time() - clock, 2)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
