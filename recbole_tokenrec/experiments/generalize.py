"""Table 4: users whom neither tokenizer nor language model has seen.

A group of users is taken out of the training data (``unseen.py``). After training only the collaborative side learns of
them; the frozen MQ-Tokenizers give them tokens, and the untouched language model ranks for them. The group is the 5 %
with the least history, as in the paper, or 5 % at random. The paper compares the unseen users with the seen ones, who
are other people, with longer histories. Two rows say what of that drop is due to being unseen: the seen users of as
many training items, and the same users in a model that was trained on them too.
"""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np

from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.quoted import quoted
from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, Run, carry_out, record_path
from recbole_tokenrec.experiments.statistics import mean_sd, ndcg_per_user, paired
from recbole_tokenrec.experiments.unseen import train_without
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.pipeline import write_json
from recbole_tokenrec.ranks import metrics_of
from recbole_tokenrec.registry import available_presets
from recbole_tokenrec.settings import read_settings

TITLE = "Table 4: seen and unseen users"
ARGUMENTS = ("preset", "group", "share", "update", "against")
TRAINED_ON = "the same users, trained on"


def add_arguments(parser) -> None:
    parser.add_argument("--preset", help=f"{', '.join(available_presets())} (default: tuned)")
    parser.add_argument("--group", default="least", choices=("least", "random"), help="least history, or at random")
    parser.add_argument("--share", type=float, default=0.05, help="share of the users left out (default: 0.05)")
    parser.add_argument(
        "--update", default="nothing", choices=("nothing", "collaborative"),
        help="nothing: no weight has seen them, their vectors are folded in (default); collaborative: the first stage "
             "is trained on everybody, as in the paper",
    )  # fmt: skip
    parser.add_argument(
        "--against", choices=("trained", "seen"),
        help="trained: a second model, trained on everybody, for the last row (default); seen: the first alone",
    )  # fmt: skip


def run(bench: Bench, arguments) -> Report:
    if not 0 < arguments.share < 1:
        raise ConfigError(f"--share: {arguments.share} is not allowed; allowed: float in (0, 1)")
    row = Run("TokenRec", "TokenRec", preset=arguments.preset)
    settings = read_settings(bench.config(row, bench.seeds[0]))
    if settings.cf_model != "LightGCN":
        raise ConfigError(
            f"cf_model: {settings.cf_model!r} is not allowed; allowed: LightGCN, since the others' users are rows of "
            "a trained table, which has none for users who were left out"
        )
    trained = [] if arguments.against == "seen" else carry_out([row], bench)
    updated = arguments.update == "collaborative"
    label = f"unseen {arguments.group} {arguments.share}" + (", updated" if updated else "")
    records = []
    for seed in bench.seeds:
        part = Run(label, "TokenRec", preset=arguments.preset)
        config = bench.config(part, seed)
        path = record_path(bench, part, seed, config)
        if not path.exists():
            write_json(path, train_without(config, arguments.group, arguments.share, updated))
        records.append(json.loads(path.read_text(encoding="utf-8")))
    _, (train_data, _, _) = load_data(config)
    counts = Histories.from_dataset(train_data._dataset).counts().numpy()
    return _report(bench, arguments, trained, records, counts)


def as_many_items(ranks: list[int], unseen: np.ndarray, items: np.ndarray) -> dict[str, float]:
    """Metrics of the seen users, as if as many of them had n training items as of the unseen, for each n.

    Args:
        ranks: as :func:`~recbole_tokenrec.ranks.with_ranks` returns them.
        unseen: (n,) bool, who of them was left out.
        items: (n,) training items of each.

    Numbers of items that no seen user has are left out; nan where that is all of them.
    """
    shared = np.intersect1d(items[unseen], items[~unseen])
    weights = [np.count_nonzero(items[unseen] == number) for number in shared]
    parts = [metrics_of(ranks, np.flatnonzero(~unseen & (items == number))) for number in shared]
    names = ("hit@20", "ndcg@20")
    if not parts:
        return dict.fromkeys(names, float("nan"))
    return {name: float(np.average([part[name] for part in parts], weights=weights)) for name in names}


def _report(bench: Bench, arguments, trained: list[dict], records: list[dict], counts: np.ndarray) -> Report:
    """``counts`` (n_users,): training items of each user."""
    per_seed = []
    for number, record in enumerate(records):
        figures = {}
        for split in ("valid", "test"):
            unseen, ranks = _unseen(record, split), record["ranks"][split]
            figures[split] = {
                "seen users": metrics_of(ranks, np.flatnonzero(~unseen)),
                "seen users of as many items": as_many_items(ranks, unseen, counts[record["evaluated"][split]]),
                "unseen users": metrics_of(ranks, np.flatnonzero(unseen)),
            }
            if trained:
                known = trained[number]["rows"][0]["ranks"][split]
                figures[split][TRAINED_ON] = metrics_of(known, np.flatnonzero(unseen))
        per_seed.append(figures)
    labels = list(per_seed[0]["test"])
    figures = {
        label: {
            split: {
                metric: dict(zip(("mean", "sd"), mean_sd([seed[split][label][metric] for seed in per_seed])))
                for metric in ("hit@20", "ndcg@20")
            }
            for split in ("valid", "test")
        }
        for label in labels
    }

    def pooled(label: str, metric: str) -> float:
        return sum(figures[label][split][metric]["mean"] for split in ("valid", "test")) / 2

    drops = {
        f"against {label}": {
            m: 1 - pooled("unseen users", m) / max(pooled(label, m), 1e-12) for m in ("hit@20", "ndcg@20")
        }
        for label in labels
        if label != "unseen users"
    }
    paper = quoted("generalize", records[0]["data"])
    rows = [
        [
            label,
            *(f"{figures[label][split][m]['mean']:.4f}" for split in ("valid", "test") for m in ("hit@20", "ndcg@20")),
        ]
        for label in labels
    ]
    rows += [
        [f"drop {label}, both splits", "", "", f"{100 * drop['hit@20']:.1f} %", f"{100 * drop['ndcg@20']:.1f} %"]
        for label, drop in drops.items()
    ]
    quotes = [
        [name, *(f"{value:.4f}" for value in (*row["seen"], *row["unseen"])),
         f"{100 * (1 - row['unseen'][1] / row['seen'][1]):.0f} %"]
        for name, row in paper.items()
    ]  # fmt: skip
    number = sum(len(record["users"]) for record in records)
    what = "with the least history" if arguments.group == "least" else "at random"
    updated = arguments.update == "collaborative"
    left_out = "all training and folded in afterwards: no weight changes."
    if updated:
        left_out = (
            "the training of the tokenizers and of the language model; the collaborative stage is trained on "
            "everybody, as in the paper."
        )
    sentences = [
        f"{len(records)} seed(s); in each, {100 * arguments.share:g} % of the users {what} (together {number} users, "
        f"{np.mean([r['items_of_user'] for r in records]):.1f} training items each) are left out of {left_out}",
        "Seen and unseen users are different people. The second row is the seen users, each number of training items "
        "as frequent as among the unseen. A drop below 0 means that the unseen did better.",
    ]
    alike = _paired(trained, records) if trained else None
    if alike:
        sentences.append(
            "The last row is the same people in a model that was trained on them. NDCG@20 of the unseen users is "
            f"{alike['ratio']:.2f} times that (validation and test together): a difference of "
            f"{alike['difference']:+.4f}, 95 % interval {alike['low']:+.4f} … {alike['high']:+.4f}, "
            f"p = {alike['p']:.2g}, paired; {alike['users']} different people, each with the mean over his seeds."
        )
    tables = [
        Table("Hit@20 and NDCG@20", ["users", "valid hit@20", "valid ndcg@20", "test hit@20", "test ndcg@20"], rows),
        Table(
            "The paper's Table 4 (quoted)",
            ["model", "seen HR@20", "seen NG@20", "unseen HR@20", "unseen NG@20", "drop of NG@20"],
            quotes,
        ),
    ]
    content = {"dataset": records[0]["data"], "seeds": list(bench.seeds), "figures": figures, "drops": drops,
               "paired": alike, "group": arguments.group, "share": arguments.share,
               "update": arguments.update, "users": number, "paper": paper}  # fmt: skip
    return Report(
        f"{bench.dataset}: unseen users, preset {arguments.preset}",
        sentences,
        tables,
        content,
        lambda figure: _draw(figure, figures),
        subfolder=f"{arguments.preset}-{arguments.group}" + ("-updated" if updated else ""),
    )


def _unseen(record: dict, split: str) -> np.ndarray:
    """(n,) bool: which of the ranks of a split are the group's. Users with two interactions have no validation item."""
    return np.isin(record["evaluated"][split], record["users"])


def _paired(trained: list[dict], records: list[dict]) -> dict:
    """The unseen users' NDCG@20 against their own in the model that was trained on them, by :func:`paired`.

    Somebody whom several seeds leave out counts once, and so do his two held-out items.
    """
    found = defaultdict(list)
    for known, record in zip(trained, records):
        for split in ("valid", "test"):
            unseen = _unseen(record, split)
            users = np.asarray(record["evaluated"][split])[unseen]
            both = [ndcg_per_user([ranks[split]])[unseen] for ranks in (record["ranks"], known["rows"][0]["ranks"])]
            for user, *values in zip(users.tolist(), *both):
                found[user].append(values)
    ours, theirs = np.array([np.mean(values, axis=0) for values in found.values()]).T
    return {**paired(ours, theirs), "users": len(found)}


def _draw(figure, figures: dict) -> None:
    for axes, metric in zip(figure.subplots(1, 2), ("hit@20", "ndcg@20")):
        for offset, split in ((-0.2, "valid"), (0.2, "test")):
            places = [place + offset for place in range(len(figures))]
            axes.bar(places, [entry[split][metric]["mean"] for entry in figures.values()], 0.4, label=split)
        axes.set_xticks(range(len(figures)), list(figures), rotation=15)
        axes.set_ylabel(metric)
        axes.legend()
