"""The paper's own numbers, from ``properties/paper.yaml``."""

from __future__ import annotations

import yaml

from recbole_tokenrec.paths import properties_dir


def quoted(experiment: str, data: dict) -> dict:
    """Row -> numbers as the paper prints them; {} where the paper has none for the data set.

    Args:
        data: ``data`` of a result file. A part of the paper's data set is another data set: the users must be as many.
    """
    tables = yaml.safe_load((properties_dir() / "paper.yaml").read_text(encoding="utf-8"))
    if data["users"] != tables["users"].get(data["name"]):
        return {}
    return tables.get(experiment, {}).get(data["name"], {})
