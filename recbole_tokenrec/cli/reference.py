"""``python -m recbole_tokenrec.cli.reference > docs/configuration.md``: TokenRec's keys, as they are checked."""

from __future__ import annotations

import yaml

from recbole_tokenrec.paths import properties_dir
from recbole_tokenrec.registry import available_presets, preset_values
from recbole_tokenrec.settings import OPTIONS


def reference() -> str:
    """The page in Markdown: every key with its meaning, what is allowed, and its value in each preset."""
    folder = properties_dir()
    common = yaml.safe_load((folder / "model" / "TokenRec.yaml").read_text(encoding="utf-8"))
    names = available_presets()
    presets = {name: preset_values(name) for name in names}
    lines = [
        "# TokenRec's configuration keys",
        "",
        "Written by `python -m recbole_tokenrec.cli.reference > docs/configuration.md`; a test compares. Any key can",
        "be set in a YAML file (`--config_files my.yaml`), on the command line (`--key=value`) or in `config_dict`.",
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
    return "\n".join(lines) + "\n"


def _cell(value) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(reference(), end="")
