"""What people pass in, brought into one form: raw ids as text, histories as lists of raw ids, oldest first."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from recbole_tokenrec.errors import DataError

ANONYMOUS = "anonymous"  # the user_id of a history that was given without one


def raw_id(value) -> str:
    """An id as RecBole keeps it: text. 7, "7", numpy's 7 and 7.0 (a number column with blanks) are the same id.

    Raises:
        DataError: the value is no id: a missing value, a list …
    """
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, numbers.Real) and float(value).is_integer() and not isinstance(value, (bool, np.bool_)):
        return str(int(value))
    raise DataError(f"{value!r} is not an id; allowed: texts and whole numbers")


def raw_ids(values, what: str) -> list[str]:
    """One id or any sequence of them, each once, in order."""
    if isinstance(values, (str, numbers.Number)):
        values = [values]
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise DataError(f"{what}: {type(values).__name__} is not allowed; allowed: a sequence of ids")
    return list(dict.fromkeys(raw_id(value) for value in values))


def read_histories(histories, uid_field: str, iid_field: str, time_field: str) -> dict[str, list[str]]:
    """User -> items, oldest first, out of any of the three forms that ``recommend`` takes.

    Args:
        histories: a data frame with the columns ``uid_field`` and ``iid_field`` (sorted by ``time_field`` if it has
            that), a mapping user -> items, or the items of one nameless user.

    Raises:
        DataError: none of these, or a user's items are no sequence.
    """
    if isinstance(histories, pd.DataFrame):
        users, items = read_interactions(histories, uid_field, iid_field, time_field)
        result: dict[str, list[str]] = {}
        for user, item in zip(users, items):
            result.setdefault(user, []).append(item)
        return result
    if isinstance(histories, Mapping):
        for user, items in histories.items():
            if isinstance(items, (str, Mapping)) or not isinstance(items, Iterable):
                raise DataError(
                    f"histories: user {user!r} has {items!r}, which is not allowed; allowed: a sequence of items"
                )
        return {raw_id(user): [raw_id(item) for item in items] for user, items in histories.items()}
    if isinstance(histories, str) or not isinstance(histories, Iterable):
        raise DataError(
            f"histories: {type(histories).__name__} is not allowed; allowed: a data frame with the columns {uid_field} "
            f"and {iid_field}, a mapping user -> items, or the items of one user"
        )
    return {ANONYMOUS: [raw_id(item) for item in histories]}


def read_interactions(frame, uid_field: str, iid_field: str, time_field: str) -> tuple[list[str], list[str]]:
    """Users and items of a data frame in time order (that of the rows without a time column).

    Columns may be named as in RecBole's atomic files, ``user_id:token``. Times may be texts of numbers, as
    ``read_csv(..., dtype=str)`` gives them.

    Raises:
        DataError: no data frame, a column is missing, a value is no id, or a time is neither number nor date.
    """
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"interactions: {type(frame).__name__} is not allowed; allowed: a pandas data frame")
    frame = frame.rename(columns=lambda name: str(name).partition(":")[0])
    for field in (uid_field, iid_field):
        if field not in frame:
            raise DataError(f"interactions: no column '{field}'; there are: {', '.join(map(str, frame.columns))}")
    if time_field in frame:
        if frame[time_field].isna().any():
            raise DataError(f"interactions: column '{time_field}' has missing values")
        frame = frame.sort_values(time_field, kind="stable", key=_as_times)
    return [raw_id(value) for value in frame[uid_field]], [raw_id(value) for value in frame[iid_field]]


def _as_times(column: pd.Series) -> pd.Series:
    """``column`` as what sorts by time: texts would sort as texts do, 121 before 41."""
    if pd.api.types.is_datetime64_any_dtype(column) or all(isinstance(value, datetime.date) for value in column):
        return column
    times = pd.to_numeric(column, errors="coerce")
    if times.isna().any():
        wrong = column[times.isna()].iloc[0]
        raise DataError(f"interactions: column '{column.name}' has {wrong!r}; allowed: numbers, or dates of pandas")
    return times
