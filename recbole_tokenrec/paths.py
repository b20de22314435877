"""Where our YAML and JSON files lie: ``properties/`` beside the package in a checkout, inside it once installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def properties_dir() -> Path:
    """Folder that holds ``model/``, ``dataset/``, ``preset/`` and ``backbone/``."""
    installed = _PACKAGE / "properties"
    return installed if installed.is_dir() else _PACKAGE.parent / "properties"
