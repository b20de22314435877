"""A baseline's grid on validation: every combination of the values under ``grid`` in its YAML, one seed.

What wins is printed as the ``datasets:`` entry to put into that YAML; nothing is changed by itself. The test set is not
looked at in choosing, and not shown.
"""

from __future__ import annotations

import itertools

from recbole_tokenrec.configuration import grid_of
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.experiments.report import Report, Table
from recbole_tokenrec.experiments.runs import Bench, Run, carry_out, cost_of

TITLE = "a baseline's grid on validation"
ARGUMENTS = ("model",)


def add_arguments(parser) -> None:
    parser.add_argument("--model", required=True, help="model with a grid in its YAML, e.g. LightGCN, SASRecCE")


def run(bench: Bench, arguments) -> Report:
    name = arguments.model
    grid = grid_of(name)
    if not grid:
        raise ConfigError(f"--model: '{name}' has no grid in its YAML (properties/model or properties/baseline)")
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    runs = [Run(f"{name} {_text(point)}", name, point) for point in points]
    bench = bench._replace(folder=bench.folder / name, seeds=bench.seeds[:1])
    records = carry_out(runs, bench)
    scores = [record["rows"][0]["valid"]["ndcg@20"] for record in records]
    order = sorted(range(len(points)), key=lambda i: -scores[i])
    rows = [[_text(points[i]), f"{scores[i]:.4f}", f"{cost_of(records[i])[0]:.0f}"] for i in order]
    best = points[order[0]]
    entry = f"datasets: {{{bench.dataset}: {{{_text(best)}}}}}"
    content = {
        "dataset": records[0]["data"],
        "model": name,
        "grid": grid,
        "points": [{**point, "valid_ndcg@20": score} for point, score in zip(points, scores)],
        "best": best,
    }
    return Report(
        f"{bench.dataset}: grid of {name}",
        [f"Best on validation, as an entry of its YAML: `{entry}`"],
        [Table("Validation NDCG@20, one seed", ["values", "NDCG@20", "seconds"], rows)],
        content,
        lambda figure: _draw(figure, [_text(points[i]) for i in order], [scores[i] for i in order]),
        subfolder=name,
    )


def _text(point: dict) -> str:
    return ", ".join(f"{key}: {value}" for key, value in point.items())


def _draw(figure, labels, scores) -> None:
    axes = figure.subplots()
    axes.barh(labels[::-1], scores[::-1])
    axes.set_xlabel("validation NDCG@20")
