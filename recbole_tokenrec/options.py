"""What a configuration key takes: one description, one check and one wording of what is allowed, for every model.

A model of ours lists its keys as :class:`Option`; :class:`WithOptions` checks them before any data are read (for
``make_config``) and again when the model is built (for whoever goes by RecBole's own functions). TokenRec's keys, which
depend on one another, are in ``settings.py``; those that RecBole gives every model are in ``commonkeys.py``.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, NamedTuple

from recbole_tokenrec.errors import ConfigError


class Option(NamedTuple):
    """One key: its type, its range [low, high] or its ``choices``, and what it is for (where no YAML's comment says).

    Attributes:
        kind: int, float, bool, str, list or dict. An int is a float too, 2.0 an int, a bool neither.
        choices: of a str, what it may be; of a list, what may be in it, and a single name stands for a list of it.
        distinct: no choice comes twice in a list.
        shares: the list is a range [low, high] of shares within (0, 1).
        optional: it may be empty (None).
        open_low, open_high: that end itself is not allowed.
    """

    kind: type
    doc: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple = ()
    distinct: bool = False
    shares: bool = False
    optional: bool = False
    open_low: bool = False
    open_high: bool = False

    def allowed(self) -> str:
        if self.shares:
            text = "two shares [low, high] within (0, 1)"
        elif self.choices:
            text = "one of " + ", ".join(str(choice) for choice in self.choices)
            text += ", or a list of them" + (", each once" if self.distinct else "") if self.kind is list else ""
        elif self.kind in (int, float) and (self.low > -math.inf or self.high < math.inf):
            form = "d" if self.kind is int else "g"
            opening, closing = "(["[not self.open_low], ")]"[not self.open_high]
            high = "inf)" if self.high == math.inf else f"{self.high:{form}}{closing}"
            low = "-inf" if self.low == -math.inf else f"{self.low:{form}}"
            text = f"{self.kind.__name__} in {opening}{low}, {high}"
        else:
            names = {bool: "true or false", dict: "a mapping", list: "a list", str: "a text"}
            text = names.get(self.kind, self.kind.__name__)
        return text + (" or empty" if self.optional else "")

    def holds(self, value) -> bool:
        """Whether a value of the right type is allowed."""
        if self.shares:
            return _are_shares(value)
        if self.choices:
            return value in self.choices
        if self.kind in (int, float):
            above = value > self.low if self.open_low else value >= self.low
            below = value < self.high if self.open_high else value <= self.high
            return above and below and math.isfinite(value)
        return True


class WithOptions:
    """A model that knows its keys; a base class beside RecBole's."""

    options: dict[str, Option] = {}

    @classmethod
    def check_config(cls, config) -> None:
        """Raise a ``ConfigError`` for the first key of ``options`` whose value is not allowed."""
        check_options(config, cls.options)


def check_options(config, options: dict[str, Option]) -> None:
    """Check each key of ``options`` in ``config``, which gets the values in their options' types (2.0 is 2).

    Raises:
        ConfigError: for the first key whose value is not allowed.
    """
    for key, option in options.items():
        config[key] = check(key, config[key], option)


def check(key: str, value: Any, option: Option) -> Any:
    """The value in its option's type, or a ``ConfigError`` that names the key, the value and what is allowed."""
    if value is None or (isinstance(value, str) and value.lower() in ("", "none", "null")):
        if option.optional:
            return None
        raise ConfigError(f"{key}: a value is needed; allowed: {option.allowed()}")
    whole = option.kind is int and isinstance(value, float) and value.is_integer()
    number = option.kind is float and isinstance(value, int) and not isinstance(value, bool)
    given = value
    if whole or number:
        value = option.kind(value)
    if option.kind is list and isinstance(value, tuple):
        value = list(value)
    if option.kind is list and option.choices:  # one name, or a list of them
        value = [value] if isinstance(value, str) else value
        for name in value if isinstance(value, list) and value else [value]:
            if name not in option.choices:
                hint = nearest(name, option.choices)
                raise ConfigError(f"{key}: {name!r} is not allowed; allowed: {option.allowed()}{hint}")
        if option.distinct and len(set(value)) < len(value):
            raise ConfigError(f"{key}: {given!r} is not allowed; allowed: {option.allowed()}")
        return value
    right_type = isinstance(value, option.kind) and (option.kind is bool or not isinstance(value, bool))
    if not right_type or not option.holds(value):
        hint = nearest(value, option.choices)
        raise ConfigError(f"{key}: {given!r} is not allowed; allowed: {option.allowed()}{hint}")
    return value


def _are_shares(values) -> bool:
    """Whether ``values`` is a range [low, high] of shares, within (0, 1)."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return numbers and len(values) == 2 and 0 < values[0] <= values[1] < 1


def reject_unknown(keys, known) -> None:
    """Raise a ``ConfigError`` for the first of ``keys`` that is not ``known``, with the nearest known name."""
    known = sorted(known)
    for key in keys:
        if key not in known:
            raise ConfigError(f"unknown configuration key '{key}'{nearest(key, known)}")


def nearest(value, known) -> str:
    """"; did you mean …?" for a mistyped name, or nothing."""
    near = difflib.get_close_matches(str(value), [str(name) for name in known], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
