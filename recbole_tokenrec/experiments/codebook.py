"""Figure 5: number K of codebooks and number L of codewords in each, for users and items alike, as in the paper."""

from __future__ import annotations

from recbole_tokenrec.experiments.report import Report
from recbole_tokenrec.experiments.runs import Bench
from recbole_tokenrec.experiments.variants import add_preset_argument, compare_variants, variants_report

TITLE = "Figure 5: number and size of the codebooks"
ARGUMENTS = ("preset",)
NUMBERS = (1, 2, 3, 4, 5)
SIZES = (128, 256, 512, 1024)
REFERENCE = "K = 3, L = 256"


def add_arguments(parser) -> None:
    add_preset_argument(parser)


def run(bench: Bench, arguments) -> Report:
    table = {
        f"K = {number}, L = {size}": {
            "mq_num_codebooks": number, "mq_user_num_codebooks": number, "mq_codebook_size": size,
        }
        for size in SIZES
        for number in NUMBERS
    }  # fmt: skip
    records, figures, against = compare_variants(bench, table, arguments.preset, REFERENCE)
    sentences = ["The paper shows its figures in a plot only; it suggests K = 3 and L = 256 or 512 (Section 3.6.2)."]
    return variants_report(
        f"codebooks, preset {arguments.preset}", bench, records, figures, against, {}, _heat(figures), sentences
    )


def _heat(figures: dict):
    def draw(figure):
        for axes, split in zip(figure.subplots(1, 2), ("valid", "test")):
            values = [
                [figures[f"K = {number}, L = {size}"][split]["ndcg@20"]["mean"] for number in NUMBERS] for size in SIZES
            ]
            axes.imshow(values, cmap="Blues", aspect="auto")
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    axes.text(column, row, f"{value:.4f}", ha="center", va="center", fontsize=8)
            axes.set_xticks(range(len(NUMBERS)), NUMBERS)
            axes.set_yticks(range(len(SIZES)), SIZES)
            axes.set_xlabel("K")
            axes.set_ylabel("L")
            axes.set_title(f"NDCG@20, {split}")

    return draw
