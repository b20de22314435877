"""What the subcommands that use a trained model share."""

from __future__ import annotations

from pathlib import Path

from recbole_tokenrec.errors import ConfigError


def no_more(rest: list[str]) -> None:
    """Raise a ConfigError for arguments that nobody asked for."""
    if rest:
        raise ConfigError(f"'{rest[0]}' is not understood; see --help")


def open_model(arguments):
    """The recommender that ``--checkpoint`` (and ``--index``, ``--data_path`` where there) name."""
    from recbole_tokenrec.api import load

    return load(arguments.checkpoint, getattr(arguments, "index", "exact"), getattr(arguments, "data_path", None))


def read_list(file: str) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        ConfigError: it cannot be read, or there are none.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error})") from error
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ConfigError(f"{file} holds no ids")
    return ids
