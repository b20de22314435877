"""One figure shape for three experiments: variants of TokenRec beside each other, Hit@20 and NDCG@20, mean and sd."""

from __future__ import annotations

from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, Run, carry_out
from recbole_tokenrec.experiments.statistics import collect, compare, mean_sd
from recbole_tokenrec.registry import available_presets

METRICS = ("hit@20", "ndcg@20")


def add_preset_argument(parser) -> None:
    parser.add_argument(
        "--preset", help=f"base of all variants: {', '.join(available_presets())} (default: tuned)"
    )


def compare_variants(bench: Bench, variants: dict[str, dict], preset: str, reference: str) -> tuple[list, dict, dict]:
    """Train every variant (label -> keys) and compare it with ``reference``.

    Returns:
        the trainings' records; label -> its figures over seeds; label -> paired comparison with the reference.
    """
    runs = [Run(label, "TokenRec", keys, preset=preset) for label, keys in variants.items()]
    records = carry_out(runs, bench)
    entries = collect(records)
    figures = {
        label: {
            split: {metric: dict(zip(("mean", "sd"), mean_sd(entry[split][metric]))) for metric in METRICS}
            for split in ("valid", "test")
        }
        for label, entry in entries.items()
    }
    for record in records:
        codes = record.get("codes")
        if codes:
            figures[record["label"]]["explained_variance"] = {
                side: codes[side]["explained_variance"] for side in ("user", "item")
            }
            figures[record["label"]]["unique_items"] = codes["item"]["unique_share"]
    against = {label: compare(entry, entries[reference]) for label, entry in entries.items() if label != reference}
    return records, figures, against


def variants_report(
    title: str, bench: Bench, records: list, figures: dict, against: dict, paper: dict, draw, sentences: list[str]
) -> Report:
    """The common report: validation and test figures, the paper's own beside them, and the paired comparison."""

    def cell(value):
        return f"{value['mean']:.4f}" + ("" if value["sd"] != value["sd"] else f" ± {value['sd']:.4f}")

    rows = []
    for label, figure in figures.items():
        row = [label, *(cell(figure[split][metric]) for split in ("valid", "test") for metric in METRICS)]
        row += [f"{figure['explained_variance'][side]:.2f}" for side in ("user", "item")]
        row.append(f"{figure['unique_items']:.3f}")
        test = against.get(label)
        row += [f"{test['ratio']:.3f}", f"{test['p']:.2g}"] if test else ["", ""]
        row += [f"{value:.4f}" for value in paper.get(label, [])] or ["", ""]
        rows.append(row)
    headers = [
        "variant", *(f"{split} {metric}" for split in ("valid", "test") for metric in METRICS), "EV users", "EV items",
        "unique items", "NDCG@20 ratio", "p", "paper Hit@20", "paper NDCG@20",
    ]  # fmt: skip
    data = records[0]["data"]
    seeds = sorted({record["seed"] for record in records})
    first = (
        f"{data['users']} users, {data['items']} items, {data['interactions']} interactions; {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''}. The ratio and p (paired t-test over users, validation and test "
        "together, seeds averaged) compare with the reference, which has none. EV is the variance that the tokens "
        "keep of the collaborative representations."
    )
    content = {"dataset": data, "seeds": seeds, "variants": figures, "against_reference": against, "paper": paper}
    return Report(f"{bench.dataset}: {title}", [first, *sentences], [Table(title, headers, rows)], content, draw)


def bars(figures: dict):
    """``draw`` for :class:`Report`: a bar of validation and of test NDCG@20 for each variant."""

    def draw(figure):
        axes = figure.subplots()
        labels = list(figures)[::-1]
        for offset, split, colour in ((0.2, "valid", "#9ecae1"), (-0.2, "test", "#3182bd")):
            values = [figures[label][split]["ndcg@20"] for label in labels]
            error = [0 if value["sd"] != value["sd"] else value["sd"] for value in values]
            places = [place + offset for place in range(len(labels))]
            axes.barh(places, [value["mean"] for value in values], 0.4, xerr=error, color=colour, label=split)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("NDCG@20")
        axes.legend()

    return draw
