"""The other rule for test: the validation item is known when the test item is to be found.

Every table of ours scores from the training part alone, so that the test item lies two steps after what a model knows.
Sequential recommenders are usually evaluated one step after it, with the validation item at the end of the history. No
model is trained again: the trainings of ``experiment overall`` read longer histories here. Who can: models whose users
are nothing but their histories. TokenRec's users get new vectors and tokens by fold-in, as new users do.
"""

from __future__ import annotations

import functools
from pathlib import Path

from recbole.utils import get_trainer

from recbole_tokenrec.checkpoints import load_data_and_model
from recbole_tokenrec.errors import CheckpointError
from recbole_tokenrec.experiments.overall import ROWS, chosen
from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, carry_out
from recbole_tokenrec.experiments.statistics import compare, hit_per_user, mean_sd, ndcg_per_user
from recbole_tokenrec.pipeline import start_logging
from recbole_tokenrec.ranks import with_ranks

TITLE = "test with the validation item known, as sequential recommenders are evaluated"
ARGUMENTS = ("rows",)
RULES = ("train", "train_valid")  # as ``history_at_test`` names them
READERS = {"RecencyEASE", "LightGCNSoftmax", "SASRecCE", "BERT4RecCE", "S3RecCE", "TokenRec"}  # what has ``reading``
ABLE = [run for run in ROWS if run.model in READERS]
_METRICS = {"hit@20": hit_per_user, "ndcg@20": ndcg_per_user}


def add_arguments(parser) -> None:
    names = "; ".join(run.label for run in ABLE)
    rows = "EASE, recency;LightGCN-softmax;SASRec;TokenRec"
    parser.add_argument("--rows", default=rows, help=f"NAME[;NAME...] of: {names} (default: %(default)s)")


def run(bench: Bench, arguments) -> Report:
    rows = chosen(ABLE, arguments.rows, None)
    overall = bench._replace(folder=bench.folder.parent.parent / "overall" / bench.dataset)
    records = carry_out(rows, overall)
    ranks: dict[str, dict[str, list]] = {}
    for record in records:
        for label, found in evaluated(record).items():
            for rule in RULES:
                ranks.setdefault(label, {}).setdefault(rule, []).append(found[rule])
    return _report(bench, records, ranks)


def evaluated(record: dict) -> dict[str, dict[str, list[int]]]:
    """Label -> rule -> each user's rank of the test item, by the checkpoint of a record.

    Raises:
        CheckpointError: it is gone, or is another training's.
    """
    path = Path(record["checkpoint"])
    if not path.is_file():
        raise CheckpointError(
            f"{path}: the checkpoint of row '{record['label']}', seed {record['seed']}, is gone; delete the row's file "
            "under experiments/overall, and it is trained anew"
        )
    config, model, _, _, _, test_data = load_data_and_model(path)
    start_logging(config)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    evaluate = {record["label"]: functools.partial(trainer.evaluate, load_best_model=False)}
    if len(record["rows"]) > 1 and hasattr(trainer, "evaluate_collaborative"):
        own = functools.partial(trainer.evaluate_collaborative, score="cosine")
        evaluate[f"{record['label']}: own stage, cosine"] = own
    known = {row["label"]: row["ranks"]["test"] for row in record["rows"]}
    found = {}
    for label, how in evaluate.items():
        _, as_trained = with_ranks(trainer, test_data, how)
        if as_trained != known[label]:
            raise CheckpointError(
                f"{path}: gives row '{label}', seed {record['seed']}, other ranks than its record holds; delete the "
                "row's file under experiments/overall, and it is trained anew"
            )
        with model.reading(model.histories.known_at(test_data)):
            _, longer = with_ranks(trainer, test_data, how)
        found[label] = dict(zip(RULES, (as_trained, longer)))
    return found


def _report(bench: Bench, records: list[dict], ranks: dict) -> Report:
    entries = {
        label: {rule: {"ranks": {"test": found}} for rule, found in by_rule.items()} for label, by_rule in ranks.items()
    }
    figures = {
        label: {
            rule: {
                metric: dict(zip(("mean", "sd"), mean_sd([per_user([seed]).mean() for seed in by_rule[rule]])))
                for metric, per_user in _METRICS.items()
            }
            for rule in RULES
        }
        for label, by_rule in ranks.items()
    }
    ours = [run.label for run in ROWS if run.model == "TokenRec" and run.label in ranks]
    against = [
        {"row": label, "rival": rival, "rule": rule, "metric": metric,
         **compare(entries[label][rule], entries[rival][rule], splits=("test",), per_user=per_user)}
        for label in ours
        for rival in ranks
        if rival not in ours and (":" not in rival or rival.startswith(f"{label}:"))
        for rule in RULES
        for metric, per_user in _METRICS.items()
    ]  # fmt: skip
    cells: dict[tuple, list[str]] = {}
    for c in against:
        cells.setdefault((c["row"], c["rival"]), []).append(f"{c['ratio']:.3f} ({c['p']:.2g})")
    data, seeds = records[0]["data"], sorted({record["seed"] for record in records})
    columns = [f"{metric}, {rule}" for rule in ("training part", "validation item too") for metric in _METRICS]
    rows = figures.items()
    sentences = [
        f"{data['users']} users, {data['items']} items, {data['interactions']} interactions; seeds "
        f"{', '.join(map(str, seeds))}. The same trained models, asked twice: with the training part as history, and "
        "with the validation item at its end, too. Full sort; the history is masked, the validation item both times.",
    ]
    tables = [
        Table(
            "Test",
            ["model", *columns],
            [[label, *(f"{f[rule][m]['mean']:.4f}" for rule in RULES for m in _METRICS)] for label, f in rows],
        ),
        Table(
            "How many times each other row TokenRec is (p), test alone",
            ["TokenRec row", "rival", *columns],
            [[*names, *found] for names, found in cells.items()],
        ),
    ]
    content = {"dataset": data, "seeds": seeds, "rows": figures, "against": against,
               "versions": records[0]["versions"]}  # fmt: skip
    title = f"{bench.dataset}: test with the validation item known"
    return Report(title, sentences, tables if ours else tables[:1], content, lambda figure: _draw(figure, figures))


def _draw(figure, figures: dict) -> None:
    axes, labels = figure.subplots(), list(figures)[::-1]
    for offset, rule, colour in ((0.2, "train", "#9ecae1"), (-0.2, "train_valid", "#3182bd")):
        places = [place + offset for place in range(len(labels))]
        axes.barh(places, [figures[label][rule]["ndcg@20"]["mean"] for label in labels], 0.4, color=colour, label=rule)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("test NDCG@20")
    axes.legend(title="history")
