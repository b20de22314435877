"""What an experiment leaves behind: ``result.json``, ``result.md``, ``figure.png`` and a page ``index.html``.

The page needs no network: the figure is an SVG inside it.
"""

from __future__ import annotations

import html
import importlib.util
import io
import os
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.pipeline import write_json


class Table(NamedTuple):
    """A titled table; cells are texts."""

    title: str
    headers: list[str]
    rows: list[list[str]]


class Report(NamedTuple):
    """Content of an experiment.

    Attributes:
        title: first line.
        sentences: what a reader must know, a paragraph each.
        tables: in order.
        content: what the JSON file holds.
        draw: ``draw(figure)`` fills a matplotlib figure.
        subfolder: below the experiment's folder, where one experiment has several reports.
    """

    title: str
    sentences: list[str]
    tables: list[Table]
    content: dict
    draw: object
    subfolder: str = ""


def need_matplotlib() -> None:
    """Raises:
    ConfigError: matplotlib, which draws the figures, is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError('experiments draw figures with matplotlib: pip install "recbole-tokenrec[plot]"')


def write_report(report: Report, folder: Path, command: str) -> list[Path]:
    """Write the four files; returns their paths, the JSON file first."""
    from matplotlib.figure import Figure

    folder = folder / report.subfolder
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("result.json", "result.md", "figure.png", "index.html")]
    write_json(paths[0], {"title": report.title, "command": command, **report.content})
    _write(paths[1], markdown(report, command))
    figure = Figure(layout="constrained", figsize=(9, 5))
    report.draw(figure)
    figure.savefig(paths[2], dpi=130)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    _write(paths[3], _page(report, command, drawing.getvalue()))
    return paths


def markdown(report: Report, command: str) -> str:
    parts = [f"# {report.title}", f"```\n{command}\n```", *report.sentences]
    for table in report.tables:
        parts += [f"## {table.title}", tabulate(table.rows, table.headers, tablefmt="github", disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def _page(report: Report, command: str, svg: str) -> str:
    tables = "".join(
        f"<h2>{html.escape(table.title)}</h2>"
        + str(tabulate(table.rows, table.headers, tablefmt="html", disable_numparse=True))
        for table in report.tables
    )
    sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in report.sentences)
    style = (
        "body{font:15px sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{border-bottom:1px solid #ccc;padding:3px 8px;text-align:left}svg{max-width:100%;height:auto}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(report.title)}</title>"
        f"<style>{style}</style><h1>{html.escape(report.title)}</h1><pre>{html.escape(command)}</pre>"
        f"{sentences}{svg[svg.index('<svg') :]}{tables}</html>\n"
    )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
