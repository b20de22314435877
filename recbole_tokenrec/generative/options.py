"""One check of the configuration keys of a generative baseline."""

from __future__ import annotations

from typing import Callable, NamedTuple

from recbole_tokenrec.errors import ConfigError


class Rule(NamedTuple):
    """``kind`` is the value's type (an int is a float too, a bool is neither); ``holds`` is true of what is allowed."""

    kind: type
    holds: Callable
    allowed: str


def whole(low: int) -> Rule:
    return Rule(int, lambda value: value >= low, f"an integer of at least {low}")


def number(low: float) -> Rule:
    return Rule(float, lambda value: value >= low, f"a number of at least {low}")


def positive() -> Rule:
    return Rule(float, lambda value: value > 0, "a number above 0")


def choice(*names: str) -> Rule:
    return Rule(str, lambda value: value in names, ", ".join(names))


def flag() -> Rule:
    return Rule(bool, lambda value: True, "true or false")


def text() -> Rule:
    return Rule(str, bool, "a name")


def share() -> Rule:
    return Rule(float, lambda value: 0 <= value < 1, "a number in [0, 1)")


def empty_or(rule: Rule) -> Rule:
    return Rule(object, lambda value: value is None or _fits(rule, value), f"empty, or {rule.allowed}")


def check_keys(config, rules: dict[str, Rule]) -> None:
    """Raise a ``ConfigError`` that names the first key of ``rules`` whose value does not fit."""
    for key, rule in rules.items():
        if not _fits(rule, config[key]):
            raise ConfigError(f"{key}: {config[key]!r} is not allowed; allowed: {rule.allowed}")


def _fits(rule: Rule, value) -> bool:
    kinds = (int, float) if rule.kind is float else rule.kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and rule.kind not in (bool, object)):
        return False
    return bool(rule.holds(value))
