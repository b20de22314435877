"""Figure 4: the masking ratio rho of the MQ-Tokenizers."""

from __future__ import annotations

from recbole_tokenrec.experiments.report import Report
from recbole_tokenrec.experiments.runs import Bench
from recbole_tokenrec.experiments.variants import add_preset_argument, compare_variants, variants_report

TITLE = "Figure 4: the masking ratio"
ARGUMENTS = ("preset",)
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
REFERENCE = "rho = 0.2"


def add_arguments(parser) -> None:
    add_preset_argument(parser)


def run(bench: Bench, arguments) -> Report:
    table = {f"rho = {ratio}": {"mq_masking_ratio": ratio} for ratio in RATIOS}
    records, figures, against = compare_variants(bench, table, arguments.preset, REFERENCE)
    sentences = [
        "The paper shows its figures in a plot only; it finds 0.2 best and a loss from 0.5 on (Section 3.6.1)."
    ]
    return variants_report(
        f"masking ratio, preset {arguments.preset}", bench, records, figures, against, {}, _lines(figures), sentences
    )


def _lines(figures: dict):
    def draw(figure):
        for axes, metric in zip(figure.subplots(1, 2), ("hit@20", "ndcg@20")):
            for split in ("valid", "test"):
                values = [entry[split][metric] for entry in figures.values()]
                error = [0 if value["sd"] != value["sd"] else value["sd"] for value in values]
                axes.errorbar(RATIOS, [value["mean"] for value in values], error, marker="o", label=split)
            axes.set_xlabel("masking ratio")
            axes.set_ylabel(metric)
            axes.legend()

    return draw
