"""The schedule, the options' check."""

import pytest

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.generative.options import check_keys, choice, empty_or, flag, share, whole
from recbole_tokenrec.generative.trainer import rate


@pytest.mark.unit
def test_rate_rises_then_falls_to_nothing():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert max(rates) == rates[10] == 1.0 and min(rates) > 0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90) and rate(200, 100, 0.1) > 0
    assert rate(0, 100, 0.0) == 1.0


@pytest.mark.unit
@pytest.mark.parametrize(
    "rule, good, bad",
    [
        (whole(1), [1, 7], [0, 2.0, "3", None, True]),
        (share(), [0, 0.5], [1, -0.1, "0.1", False]),
        (choice("a", "b"), ["a"], ["c", None, 1]),
        (flag(), [True, False], [0, 1, "True"]),
        (empty_or(whole(1)), [None, 4], [0, True, "x"]),
    ],
)
def test_rules_take_what_they_say(rule, good, bad):
    for value in good:
        check_keys({"key": value}, {"key": rule})
    for value in bad:
        with pytest.raises(ConfigError, match=r"^key: .* is not allowed; allowed: "):
            check_keys({"key": value}, {"key": rule})
