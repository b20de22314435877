"""The schedule of the learning rate."""

import pytest

from recbole_tokenrec.generative.trainer import rate


@pytest.mark.unit
def test_rate_rises_then_falls_to_nothing():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert max(rates) == rates[10] == 1.0 and min(rates) > 0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90) and rate(200, 100, 0.1) > 0
    assert rate(0, 100, 0.0) == 1.0
