"""Errors that are a user's to mend.

The command line prints them without a traceback and exits with code 2; from Python they are ordinary
``ValueError`` s, so that code written for RecBole, which raises those, keeps working.
"""


class TokenRecError(ValueError):
    """Base of every error below: its text names the key or file, the value found and what is allowed."""


class ConfigError(TokenRecError):
    """A configuration key is unknown, has a wrong value or contradicts another."""


class DataError(TokenRecError):
    """The data set cannot be had, misses a column, or is too small to split."""


class BackboneError(TokenRecError):
    """The language model's weights or tokenizer cannot be had or do not fit."""


class CheckpointError(TokenRecError):
    """A checkpoint or cache file is damaged, foreign or holds what we refuse to load."""


class TrainingError(TokenRecError):
    """Training cannot go on, e.g. because a loss is not finite."""


class OutputError(TokenRecError):
    """A result cannot be written: the disk is full, or the folder may not be written."""


def is_want_of_memory(error: Exception) -> bool:
    """Whether it is a ``MemoryError``, or a ``RuntimeError`` by which torch says the same."""
    told = "allocate" in str(error) or "out of memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)
