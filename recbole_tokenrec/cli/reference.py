"""``python -m recbole_tokenrec.cli.reference > docs/configuration.md``: our keys, TokenRec's as they are checked."""

from __future__ import annotations

import re

import yaml
from recbole.utils import get_model

from recbole_tokenrec import commonkeys
from recbole_tokenrec.paths import properties_dir
from recbole_tokenrec.registry import MODELS, available_presets, preset_values
from recbole_tokenrec.settings import OPTIONS

# Keys of properties/overall.yaml, which every run has.
_OF_RUNS = {
    "eval_args": "How the data are split and ranked, RecBole's; a part that is given leaves the others as they are.",
    "metrics": "RecBole's metrics.",
    "topk": "Lengths of the lists that are measured.",
    "valid_metric": "By which models are selected.",
    "eval_batch_size": "Scores of an evaluation batch, users times items; RecBole's sequential models count users.",
    "metric_decimal_place": "Decimals of the metrics.",
    "load_col": "Columns that are read, RecBole's.",
    "user_first_interactions": "Each user's oldest rows that are kept, int in [3, inf); the paper: 100; empty: all.",
    "resume": "Go on where the same run was killed (`--resume`).",
    "checkpoint_every_seconds": "Least seconds between two writes of a run's state; 0: every epoch; empty: never.",
    "distributed_timeout": "Under torchrun: seconds after which a process that waits for another gives up.",
}


def reference() -> str:
    """The page in Markdown: every key with its meaning, what is allowed, and its value in each preset."""
    folder = properties_dir()
    common = yaml.safe_load((folder / "model" / "TokenRec.yaml").read_text(encoding="utf-8"))
    names = available_presets()
    presets = {name: preset_values(name) for name in names}
    lines = [
        "# Configuration keys",
        "",
        "Written by `python -m recbole_tokenrec.cli.reference > docs/configuration.md`; a test compares. Any key can",
        "be set in a YAML file (`--config_files my.yaml`), on the command line (`--key=value`) or in `config_dict`.",
        "Below: TokenRec's keys, those of every run, those of the other models here. RecBole's models and data have",
        "the keys of [RecBole's documentation](https://recbole.io/docs/user_guide/config_settings.html).",
        "",
        "## TokenRec",
        "",
        "| key | meaning | allowed | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for key, option in OPTIONS.items():
        values = [_cell({**common, **presets[name], "preset": name}[key]) for name in names]
        lines.append(f"| `{key}` | {option.doc} | {option.allowed()} | " + " | ".join(values) + " |")
    lines += ["", "Values for single data sets", ""]
    for name in names:
        for dataset, keys in (presets[name].get("datasets") or {}).items():
            values = ", ".join(f"`{key}: {_cell(value)}`" for key, value in keys.items())
            lines.append(f"- `{name}`, {dataset}: {values}")
    lines += ["", "## Every run", "", "| key | meaning | value |", "|---|---|---|", *_of_runs()]
    for name in MODELS:
        if name != "TokenRec":
            lines += ["", f"## {name}", "", "| key | meaning | allowed | value |", "|---|---|---|---|"]
            lines += _of_model(name)
    lines += ["", "Of single data sets, and what `experiment tune` tries: `datasets` and `grid` in `properties/model`."]
    lines += ["", "## Keys of RecBole's that are checked", "", "| key | allowed |", "|---|---|"]
    lines += [f"| `{key}` | {option.allowed()} |" for key, option in commonkeys.OPTIONS.items()]
    return "\n".join(lines) + "\n"


def _of_runs() -> list[str]:
    values = yaml.safe_load((properties_dir() / "overall.yaml").read_text(encoding="utf-8"))
    return [f"| `{key}` | {_OF_RUNS[key]} | {_cell(value)} |" for key, value in values.items()]


def _of_model(name: str) -> list[str]:
    """The keys of a model's YAML with their comments, and what is allowed."""
    text = (properties_dir() / MODELS[name].yaml).read_text(encoding="utf-8")
    comments = dict(re.findall(r"^(\w+):[^#\n]*#\s*(?:\(\w+\)\s*)?(.*)$", text, flags=re.MULTILINE))
    own, rows = get_model(name).options, []
    for key, value in yaml.safe_load(text).items():
        if key not in ("grid", "datasets"):
            places = [table[key] for table in (OPTIONS, own, commonkeys.OPTIONS) if key in table]
            meaning = comments.get(key) or next((place.doc for place in places if place.doc), "")
            option = own.get(key) or commonkeys.OPTIONS[key]
            rows.append(f"| `{key}` | {meaning} | {option.allowed()} | {_cell(value)} |")
    return rows


def _cell(value) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(reference(), end="")
