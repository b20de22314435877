"""What a trained TokenRec gives and costs in use: recommendations, equality with RecBole's scores, the export.

    python -m benchmarks.use --checkpoint C [--users 1,2,3] [--history i1,i2,i3,i4,i5]

Prints what these users and this history took and what they are recommended; then asks for many users' 20 best items
three ways, as ``recommend`` does it, by RecBole's ``full_sort_predict`` with the history masked, and by ``recommend``
of the exported folder that was loaded back, and counts who gets the same. Times are CPU seconds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from recbole.data.interaction import Interaction

import recbole_tokenrec
from benchmarks.harness import begin, finish, parser
from recbole_tokenrec.cli.recommend import rendered, split

K = 20


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "use", rounds=1)
    arguments_parser.add_argument("--checkpoint", required=True)
    arguments_parser.add_argument("--users", help="ID[,ID…] (default: the first three)")
    arguments_parser.add_argument("--history", help="ITEM[,ITEM…], oldest first (default: the five most popular)")
    arguments_parser.add_argument("--compared", type=int, default=1000, help="users of the comparisons (default: 1000)")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    clock = time.process_time()
    model = recbole_tokenrec.load(arguments.checkpoint)
    cpu = {"load": time.process_time() - clock}
    users = split(arguments.users, "users") if arguments.users else model.users[:3]
    popular = [model.data.items[item] for item in model.data.popularity.argsort(descending=True)[:5].tolist()]
    history = split(arguments.history, "history") if arguments.history else popular

    clock = time.process_time()
    frames = [model.recommend(users, k=10), model.recommend(histories=history, k=10)]
    cpu["recommend"] = time.process_time() - clock
    shown = [shown_for(model, user, model.history(user), frames[0]) for user in users]
    shown.append(shown_for(model, "anonymous", history, frames[1]))
    for entry in shown:
        print(f"\n{entry['user']} took last: {'; '.join(entry['latest'])}")
    for frame in frames:
        frame.insert(2, "title", [model.title(item) for item in frame["item_id"]])
        print("\n" + rendered(frame, "table"))

    compared = model.users[: arguments.compared]
    clock = time.process_time()
    own = model.recommend(compared, k=K)
    cpu["recommend_compared"] = time.process_time() - clock
    same = {"users": len(compared), "k": K, "full_sort_predict": equal_to_full_sort(model, compared, own)}
    clock = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model.export(Path(folder) / "export")
        again = recbole_tokenrec.load(Path(folder) / "export")
    cpu["export_and_load"] = time.process_time() - clock
    same["export"] = equal_frames(own, again.recommend(compared, k=K))
    print({"cpu_s": {key: round(value, 2) for key, value in cpu.items()}, "same top 20": same})
    finish(arguments, before, {**about(model), "shown": shown, "cpu_s": cpu, "same": same})


def about(model) -> dict:
    """What the checkpoint is."""
    keys = model.config["config_dict"]
    return {"dataset": model.config["dataset"], "model": model.name, "preset": keys.get("preset")}


def shown_for(model, user: str, history: list[str], frame) -> dict:
    """The titles of what somebody took last, and of what he is recommended; ids where there are no titles."""
    best = frame[frame["user_id"] == user]

    def titles(items) -> list[str]:
        return [model.title(item) or item for item in items]

    return {"user": user, "kind": best["kind"].iloc[0], "latest": titles(history[-5:]), "latest_ids": history[-5:],
            "recommended": titles(best["item_id"]), "recommended_ids": best["item_id"].tolist(),
            "scores": best["score"].tolist()}  # fmt: skip


@torch.no_grad()
def equal_to_full_sort(recommender, users: list[str], own) -> int:
    """How many of the users get, in the same order, what masked ``full_sort_predict`` ranks first.

    Two neighbours whose scores differ by less than 1e-6 may stand either way round.
    """
    data, model, equal = recommender.data, recommender.model, 0
    lists = {user: part for user, part in own.groupby("user_id", sort=False)}
    for start in range(0, len(users), 128):
        part = users[start : start + 128]
        numbers = torch.tensor([data.user_numbers[user] for user in part])
        scores = model.full_sort_predict(Interaction({data.uid_field: numbers})).view(len(part), -1)
        scores[:, 0] = -torch.inf
        rows, places = data.histories.places(numbers)
        scores[rows, data.histories.items[places]] = -torch.inf
        best = scores.topk(K).values
        for row, user in enumerate(part):
            items = [data.item_numbers[item] for item in lists[user]["item_id"]]
            told = torch.tensor(lists[user]["score"].to_numpy())
            equal += len(set(items)) == K and all(
                torch.allclose(found, best[row], rtol=0, atol=1e-6) for found in (scores[row, items], told)
            )
    return equal


def equal_frames(left, right) -> int:
    """How many users have the same items with bit-equal scores in both."""
    other = dict(iter(right.groupby("user_id", sort=False)))
    columns = ["item_id", "rank", "score", "kind"]
    return sum(
        part[columns].reset_index(drop=True).equals(other[user][columns].reset_index(drop=True))
        for user, part in left.groupby("user_id", sort=False)
    )


if __name__ == "__main__":
    main()
