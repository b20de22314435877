"""How the generative baselines learn: loss and validation over the time of one thread, beside popularity.

Read from the same trainings as ``experiment overall``, which has them as rows: what one has trained the other reads.
Each model is shown with what it needed (epochs, minutes, memory) and by how much it is above or below popularity.
"""

from __future__ import annotations

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.overall import ROWS
from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, carry_out
from recbole_tokenrec.options import nearest

TITLE = "learning curves of the generative baselines"
ARGUMENTS = ("rows",)
REFERENCE = "Pop"
DEFAULT = ("P5-RID", "P5-SID", "CID", "POD", "CoLLM")
METRIC = "ndcg@20"


def add_arguments(parser) -> None:
    text = "NAME[;NAME...] of overall's rows (default: %(default)s)"
    parser.add_argument("--rows", default=";".join(DEFAULT), help=text)


def run(bench: Bench, arguments) -> Report:
    rows = {row.label: row for row in ROWS if not row.preset and not row.stage_rows}
    labels = [label for label in arguments.rows.split(";") if label and label != REFERENCE]
    for label in labels:
        if label not in rows:
            raise ConfigError(f"rows: '{label}' is not known{nearest(label, rows)}; allowed: {'; '.join(rows)}")
    if not labels:
        raise ConfigError("rows: none is left")
    overall = bench._replace(folder=bench.folder.parent.parent / "overall" / bench.dataset, seeds=bench.seeds[:1])
    reference, *records = carry_out([rows[label] for label in (REFERENCE, *labels)], overall)
    floor = {split: reference["rows"][0][split][METRIC] for split in ("valid", "test")}
    figures = {record["label"]: _figures(record, floor) for record in records}
    data = reference["data"]
    sentences = [
        f"{data['users']} users, {data['items']} items, {data['interactions']} interactions; leave-one-out by time, "
        f"full sort, history masked, seed {bench.seeds[0]}. Popularity's NDCG@20 is {floor['valid']:.4f} on validation "
        f"and {floor['test']:.4f} on test. Minutes are those of one thread's processor time, validations included. "
        "The weights of the best validation are kept.",
    ]
    behind = [label for label, found in figures.items() if found["x popularity"]["test"] < 1]
    if behind:
        sentences.append(f"Below popularity on test: {', '.join(behind)}.")
    table = Table(
        "NDCG@20, and what it took",
        ["model", "valid", "test", "x popularity, valid", "x popularity, test", "epochs", "best epoch", "minutes",
         "peak memory, MB", "parameters"],
        [
            [label, f"{f['valid']:.4f}", f"{f['test']:.4f}", f"{f['x popularity']['valid']:.2f}",
             f"{f['x popularity']['test']:.2f}", str(f["epochs"]), str(f["best_epoch"]), f"{f['minutes']:.1f}",
             f"{f['peak_rss_mb']:.0f}", f"{f['parameters']:,}"]
            for label, f in figures.items()
        ],
    )  # fmt: skip
    curves = {record["label"]: record["curve"] for record in records}
    content = {
        "dataset": data,
        "popularity": floor,
        "rows": figures,
        "curves": curves,
        "configs": {record["label"]: record["config"] for record in records},
        "versions": reference["versions"],
    }
    return Report(
        f"{bench.dataset}: how the generative baselines learn",
        sentences,
        [table],
        content,
        lambda figure: _draw(figure, curves, floor["valid"]),
    )


def _figures(record: dict, floor: dict) -> dict:
    row, curve = record["rows"][0], record["curve"]
    best = max(curve["valid"], key=lambda point: point["score"], default={"epoch": len(curve["loss"])})
    return {
        **{split: row[split][METRIC] for split in ("valid", "test")},
        "x popularity": {split: row[split][METRIC] / floor[split] for split in ("valid", "test")},
        "epochs": len(curve["loss"]),
        "best_epoch": best["epoch"],
        "minutes": record["cpu_seconds"]["train"] / 60,
        "peak_rss_mb": record["peak_rss_mb"],
        "parameters": record["parameters"],
    }


def _draw(figure, curves: dict, floor: float) -> None:
    loss, valid = figure.subplots(1, 2)
    for label, curve in curves.items():
        (line,) = loss.plot(range(1, len(curve["loss"]) + 1), curve["loss"], label=label)
        minutes = [point["cpu_seconds"] / 60 for point in curve["valid"]]
        valid.plot(minutes, [point["score"] for point in curve["valid"]], "o-", color=line.get_color(), label=label)
    valid.axhline(floor, color="grey", linestyle="--", label="popularity")
    loss.set(xlabel="epoch", ylabel="training loss, mean of a batch")
    valid.set(xlabel="minutes of one thread", ylabel="validation NDCG@20")
    valid.legend()
