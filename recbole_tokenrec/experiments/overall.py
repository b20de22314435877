"""Tables 2 and 3: every model on one data set, one split, one evaluator, the paper's numbers beside ours.

All rows score from the training part alone and mask the user's history. Models are selected on validation NDCG@20.
The comparison at the end takes validation and test together, since one held-out item a user is little, and test alone
beside it, which nothing was chosen by. The best baseline is the one that is best by both together; if that is
LightGCN-softmax, TokenRec's own first stage, the best of the others stands too.
"""

from __future__ import annotations

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.quoted import quoted
from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, Run, carry_out, cost_of
from recbole_tokenrec.experiments.statistics import collect, compare, hit_per_user, mean_sd, ndcg_per_user
from recbole_tokenrec.options import nearest
from recbole_tokenrec.settings import read_settings

TITLE = "Tables 2 and 3: every model on one data set"
ARGUMENTS = ("rows", "without", "once")

_SOFTMAX = "LightGCN-softmax"
ROWS = [
    Run("Pop", "Pop", seeded=False),
    Run("ItemKNN", "ItemKNN", seeded=False),
    Run("EASE", "EASE", seeded=False),
    Run("EASE, recency", "RecencyEASE", seeded=False),
    Run("BPR", "BPR"),
    Run("NeuMF", "NeuMF"),
    Run("LightGCN", "LightGCN"),
    Run(_SOFTMAX, "LightGCNSoftmax"),
    Run("GTN", "GTN"),
    Run("LTGNN", "LTGNN"),
    Run("SASRec", "SASRecCE"),
    Run("BERT4Rec", "BERT4RecCE"),
    Run("S3Rec", "S3RecCE"),
    Run("P5-RID", "P5", {"item_indexing": "rid"}),
    Run("P5-SID", "P5", {"item_indexing": "sid"}),
    Run("CID", "CID"),
    Run("POD", "POD"),
    Run("CoLLM", "CoLLM"),
    Run("TokenRec (user-ID-only)", "TokenRec", preset="user_id_only", stage_rows=True),
    Run("TokenRec", "TokenRec", unseen_prompt=True, stage_rows=True),
]
# TokenRec where its preset uses the order of items: trained on shuffled histories, as the paper is. What a prompt has
# no room for at evaluation is still the oldest items.
_ORDER_BLIND = {
    "prompt_order": "shuffled", "cf_targets": "all", "cf_recency": 0.0, "llm_target_ratio": [0.05, 0.3],
    "prompt_decoder_items": 0, "llm_target_weight": 0.25,
}  # fmt: skip
ORDER_BLIND = Run("TokenRec (order-blind)", "TokenRec", _ORDER_BLIND, stage_rows=True)
_USE_ORDER = {"SASRec", "BERT4Rec", "S3Rec", "EASE, recency"}  # fair rivals of a TokenRec that uses it too
_METRICS = [f"{name}@{k}" for name in ("hit", "ndcg") for k in (10, 20, 30)]


def add_arguments(parser) -> None:
    names = ", ".join(run.label for run in (*ROWS, ORDER_BLIND))
    parser.add_argument("--rows", help=f"NAME[;NAME...] of: {names} (default: all)")
    parser.add_argument("--without", help="NAME[;NAME...] of the same to leave out, e.g. the slow generative models")
    parser.add_argument("--once", help="NAME[;NAME...] of the same to train with the first seed only, to save time")


def run(bench: Bench, arguments) -> Report:
    rows = chosen(all_rows(bench), arguments.rows, arguments.without, arguments.once)
    records = carry_out(rows, bench)
    return report(records, uses_order(bench))


def uses_order(bench: Bench) -> bool:
    """Whether the default preset of this data set lets TokenRec see the order of items."""
    settings = read_settings(bench.config(Run("TokenRec", "TokenRec"), bench.seeds[0]))
    return settings.prompt_order == "sequential" or "next" in settings.cf_targets or settings.cf_recency > 0


def all_rows(bench: Bench) -> list[Run]:
    return [*ROWS, ORDER_BLIND] if uses_order(bench) else list(ROWS)


def chosen(rows: list[Run], only: str | None, without: str | None, once: str | None = None) -> list[Run]:
    """The rows that ``--rows`` and ``--without`` leave; those of ``--once`` are not ``seeded``.

    Raises:
        ConfigError: a name that no row has, or no row is left.
    """
    labels = [run.label for run in rows]
    for text in filter(None, (only, without, once)):
        for name in text.split(";"):
            if name not in labels:
                raise ConfigError(f"rows: '{name}' is not known{nearest(name, labels)}; allowed: {'; '.join(labels)}")
    left = [run for run in rows if (not only or run.label in only.split(";"))]
    left = [run for run in left if run.label not in (without or "").split(";")]
    if not left:
        raise ConfigError("rows: none is left")
    return [run._replace(seeded=False) if run.label in (once or "").split(";") else run for run in left]


def report(records: list[dict], with_order: bool) -> Report:
    entries, data = collect(records), records[0]["data"]
    paper = quoted("overall", data)
    figures = {
        label: {
            "seeds": entry["seeds"],
            **{
                split: {metric: dict(zip(("mean", "sd"), mean_sd(entry[split][metric]))) for metric in _METRICS}
                for split in ("valid", "test")
            },
        }
        for label, entry in entries.items()
    }
    comparisons = _comparisons(entries, with_order)
    every = _every(entries)
    title = "The paper's own numbers (quoted, test)"
    quoted_table = [Table(title, ["model", *_METRICS], _quoted_rows(paper))] if paper else []
    tables = [
        _table("Validation", figures, "valid"),
        _table("Test", figures, "test"),
        *quoted_table,
        *_rivals_table(comparisons),
        *_every_table(every),
        Table(
            "Cost",
            ["model", "seconds to train", "peak memory, MB", "parameters"],
            [
                [r["label"], *(f"{figure:.0f}" for figure in cost_of(r)), f"{r['parameters']:,}"]
                for r in records
                if r["seed"] == records[0]["seed"]
            ],
        ),
    ]  # fmt: skip
    sentences = [
        f"{data['users']} users, {data['items']} items, {data['interactions']} interactions; leave-one-out by time, "
        f"full sort, history masked, scores from the training part only, selection on validation NDCG@20. "
        f"{_seeds(records)}",
        *_machines(records),
    ]
    if with_order:
        rivals = [name for name in entries if name in _USE_ORDER]
        sentences.append(
            "The default preset lets TokenRec use the order of items here"
            + (f", as it is used by {', '.join(rivals)}" if rivals else "")
            + (", and the order-blind row is compared with the others." if ORDER_BLIND.label in entries else ".")
        )
    kept = ("label", "seed", "seconds", "peak_rss_mb", "parameters", "config", "versions", "machine", "precision")
    trainings = [{key: r[key] for key in kept if key in r} for r in records]
    content = {
        "dataset": data, "rows": figures, "comparisons": comparisons, "every_baseline": every, "paper": paper,
        "trainings": trainings,
    }  # fmt: skip
    return Report(f"{data['name']}: overall comparison", sentences, tables, content, lambda f: _draw(f, figures, paper))


def _machines(records: list[dict]) -> list[str]:
    """Where the rows were trained, as far as their records say: processors of another kind round differently."""
    rows: dict[str, list[str]] = {}
    for record in records:
        if machine := record.get("machine"):
            where = f"{machine['cpu']} ({machine['torch_cpu_capability']}), {machine['threads']} thread(s)"
            where = where if machine["device"] == "cpu" else machine["device"]
            where += ", matrix products in bfloat16" if record.get("precision") == "bf16" else ""
            if record["label"] not in rows.setdefault(where, []):
                rows[where].append(record["label"])
    where = "; ".join(f"{where}: {', '.join(labels)}" for where, labels in rows.items())
    return [f"Trained on {where}."] if where else []


def _seeds(records: list[dict]) -> str:
    """How many seeds the rows have, and which of them have one."""
    seeds: dict[str, list[int]] = {}
    for record in records:
        seeds.setdefault(record["label"], []).append(record["seed"])
    most = max(seeds.values(), key=len)
    if len(most) == 1:
        return f"One seed ({most[0]})."
    fixed = {run.label for run in ROWS if not run.seeded}
    once = [label for label, own in seeds.items() if len(own) == 1 and label not in fixed]
    text = f"Mean ± standard deviation over {len(most)} seeds ({', '.join(map(str, most))})"
    text += "." if not once else f"; of one seed ({most[0]}) alone, without a deviation: {', '.join(once)}."
    free = [label for label in seeds if label in fixed]
    return text + (f" No seed changes {', '.join(free)}." if free else "")


def _comparisons(entries: dict, with_order: bool) -> list[dict]:
    """Each TokenRec row against the best baseline on both splits, and against its own collaborative stage."""
    baselines = [name for name in entries if not name.startswith("TokenRec")]
    orderless = [name for name in baselines if name not in _USE_ORDER]
    found = []
    for label in [label for label in entries if label.startswith("TokenRec") and "own stage" not in label]:
        blind = with_order and label == ORDER_BLIND.label
        parent = label.replace(" (unseen prompt)", "")
        stages = [name for name in entries if name.startswith(f"{parent}: own stage")]
        rivals = {"best baseline": orderless if blind else baselines, "its own stage": stages}
        if with_order and not blind:
            rivals["best that ignores order"] = orderless
        if _best(entries, rivals["best baseline"]) == _SOFTMAX:
            rivals[f"best but {_SOFTMAX}"] = [name for name in rivals["best baseline"] if name != _SOFTMAX]
        if label != parent:
            rivals["seen prompt"] = [parent]
        if "user-ID-only" in label and "TokenRec" in entries:
            rivals["full prompt"] = ["TokenRec"]
        for role, names in rivals.items():
            rival = _best(entries, names)
            if rival:
                found.append({"row": label, "rival": rival, "role": role, **_compared(entries, label, rival)})
    return found


def _every(entries: dict) -> list[dict]:
    """Each preset's TokenRec against each baseline, by NDCG@20 and by Hit@20."""
    labels = [run.label for run in ROWS if run.model == "TokenRec" and run.label in entries]
    return [
        {"row": label, "rival": rival, "metric": metric, **_compared(entries, label, rival, per_user)}
        for rival in (name for name in entries if not name.startswith("TokenRec"))
        for label in labels
        for metric, per_user in (("ndcg@20", ndcg_per_user), ("hit@20", hit_per_user))
    ]


def _compared(entries: dict, label: str, rival: str, per_user=ndcg_per_user) -> dict:
    """:func:`compare` of both splits together, and under ``test`` of the test items alone."""
    ours, theirs = entries[label], entries[rival]
    alone = compare(ours, theirs, splits=("test",), per_user=per_user)
    return {**compare(ours, theirs, per_user=per_user), "test": alone}


def _ratio(compared: dict) -> str:
    return f"{compared['ratio']:.3f} ({compared['p']:.2g})"


def _rivals_table(comparisons: list[dict]) -> list[Table]:
    title = "TokenRec against its rivals, NDCG@20, validation and test together"
    headers = ["TokenRec row", "rival", "ratio", "95 % interval of the difference", "p", "test alone (p)"]
    rows = [
        [c["row"], f"{c['rival']} ({c['role']})", f"{c['ratio']:.3f}", f"{c['low']:+.4f} … {c['high']:+.4f}",
         f"{c['p']:.2g}", _ratio(c["test"])]
        for c in comparisons
    ]  # fmt: skip
    return [Table(title, headers, rows)] if rows else []


def _every_table(every: list[dict]) -> list[Table]:
    columns = list(dict.fromkeys((c["row"], c["metric"]) for c in every))
    cells: dict[str, list[str]] = {}
    for c in every:
        cells.setdefault(c["rival"], []).extend((_ratio(c), _ratio(c["test"])))
    title = "How many times each baseline TokenRec is (p), validation and test together, and test alone"
    names = [f"{row}, {metric}{part}" for row, metric in columns for part in ("", ", test alone")]
    rows = [[rival, *own] for rival, own in cells.items()]
    return [Table(title, ["baseline", *names], rows)] if rows else []


def _best(entries: dict, names: list[str]) -> str | None:
    """The name with the best NDCG@20, seeds and both splits averaged."""

    def score(name: str) -> float:
        return sum(mean_sd(entries[name][split]["ndcg@20"])[0] for split in ("valid", "test"))

    return max(names, key=score, default=None)


def _table(title: str, figures: dict, split: str) -> Table:
    def cell(value):
        return f"{value['mean']:.4f}" + ("" if value["sd"] != value["sd"] else f" ± {value['sd']:.4f}")

    rows = [[label, *(cell(figures[label][split][m]) for m in _METRICS)] for label in figures]
    return Table(title, ["model", *_METRICS], rows)


def _quoted_rows(paper: dict) -> list[list[str]]:
    return [[label, *(f"{value:.4f}" for value in values)] for label, values in paper.items()]


def _draw(figure, figures: dict, paper: dict) -> None:
    axes = figure.subplots()
    labels = list(figures)[::-1]
    for offset, split, colour in ((0.2, "valid", "#9ecae1"), (-0.2, "test", "#3182bd")):
        values = [figures[label][split]["ndcg@20"] for label in labels]
        error = [0 if value["sd"] != value["sd"] else value["sd"] for value in values]
        places = [place + offset for place in range(len(labels))]
        axes.barh(places, [value["mean"] for value in values], 0.4, xerr=error, color=colour, label=split)
    axes.set_yticks(range(len(labels)), labels)
    if "TokenRec" in paper:
        axes.axvline(paper["TokenRec"][4], color="grey", linestyle=":", label="the paper's TokenRec (test)")
    axes.set_xlabel("NDCG@20")
    axes.legend()
