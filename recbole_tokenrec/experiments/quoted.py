"""The paper's own numbers, from ``properties/paper.yaml``."""

from __future__ import annotations

import yaml

from recbole_tokenrec.paths import properties_dir


def quoted(experiment: str, dataset: str) -> dict:
    """Row -> numbers as the paper prints them; {} where the paper has none for the data set."""
    tables = yaml.safe_load((properties_dir() / "paper.yaml").read_text(encoding="utf-8"))
    return tables.get(experiment, {}).get(dataset, {})
