"""Means, per-user NDCG and the paired test against numpy, scipy and hand-made ranks."""

import numpy as np
import pytest
from scipy import stats

from recbole_tokenrec.experiments.statistics import collect, compare, mean_sd, ndcg_per_user

pytestmark = pytest.mark.unit


def test_ndcg_of_each_user_is_that_of_one_relevant_item():
    found = ndcg_per_user([[1, 2, 0, 21], [3, 0, 0, 20]], k=20)
    expected = [(1 + 1 / np.log2(4)) / 2, 1 / np.log2(3) / 2, 0, 1 / np.log2(21) / 2]
    np.testing.assert_allclose(found, expected)


def test_mean_and_sample_deviation():
    assert mean_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert np.isnan(mean_sd([1.0])[1])


@pytest.mark.parametrize(("valid", "independent"), [(50, 50), (40, 90)], ids=["both splits", "some in one only"])
def test_comparison_is_scipys_paired_test_over_users(valid, independent):
    rng = np.random.default_rng(0)
    sizes = {"valid": valid, "test": 50}
    ours, theirs = ({"ranks": {s: rng.integers(0, 31, (2, n)).tolist() for s, n in sizes.items()}} for _ in "ab")
    found = compare(ours, theirs)
    a, b = ([ndcg_per_user(e["ranks"][s]) for s in sizes] for e in (ours, theirs))
    a, b = ((np.mean(x, axis=0) if valid == 50 else np.concatenate(x)) for x in (a, b))
    assert len(a) == independent
    expected = stats.ttest_rel(a, b)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["ratio"] == pytest.approx(a.mean() / b.mean())
    assert found["low"] < found["difference"] < found["high"]
    assert compare(ours, ours)["ratio"] == 1.0


def test_rows_of_a_label_are_collected_over_seeds():
    def record(seed, value):
        row = {"label": "A", "valid": {"ndcg@20": value}, "test": {"ndcg@20": 2 * value}}
        return {"seed": seed, "rows": [{**row, "ranks": {"valid": [seed], "test": [0]}}]}

    entry = collect([record(1, 0.1), record(2, 0.2)])["A"]
    assert entry["seeds"] == [1, 2] and entry["test"]["ndcg@20"] == [0.2, 0.4]
    assert entry["ranks"]["valid"] == [[1], [2]]
