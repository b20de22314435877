"""From records of trainings to what a table says: means, standard deviations, paired tests."""

from __future__ import annotations

import numpy as np
from scipy import stats


def collect(records: list[dict]) -> dict[str, dict]:
    """Label of a row -> its figures over the seeds, in the order of the records.

    Returns:
        ``{"seeds": [...], "valid": {metric: [values]}, "test": {...}, "ranks": {"valid": (seeds, users), ...}}``
    """
    rows: dict[str, dict] = {}
    for record in records:
        for row in record["rows"]:
            entry = rows.setdefault(row["label"], {"seeds": [], "valid": {}, "test": {}, "ranks": {}})
            entry["seeds"].append(record["seed"])
            for split in ("valid", "test"):
                for metric, value in row[split].items():
                    entry[split].setdefault(metric, []).append(value)
                entry["ranks"].setdefault(split, []).append(row["ranks"][split])
    return rows


def mean_sd(values) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def ndcg_per_user(ranks, k: int = 20) -> np.ndarray:
    """Ranks (seeds, users), 0 for "not found" -> each user's mean NDCG@k over the seeds, with one relevant item."""
    ranks = np.asarray(ranks, dtype=float)
    found = (ranks > 0) & (ranks <= k)
    return np.where(found, 1 / np.log2(np.where(found, ranks, 1) + 1), 0.0).mean(axis=0)


def hit_per_user(ranks, k: int = 20) -> np.ndarray:
    """As :func:`ndcg_per_user`, of Hit@k: the share of the seeds that found the item."""
    ranks = np.asarray(ranks)
    return ((ranks > 0) & (ranks <= k)).mean(axis=0)


def compare(entry: dict, other: dict, splits=("valid", "test"), k: int = 20, per_user=ndcg_per_user) -> dict:
    """Paired t-test over users of a metric (``per_user``: NDCG@k), each user's mean over the seeds and the splits.

    A user's validation and test figures are not independent, so that they count as one. Only where the splits have
    different users (somebody with two interactions has no validation item) each figure counts by itself.

    Returns:
        ``ratio`` of the means, ``difference``, its 95 % interval ``low``, ``high``, and ``p`` (two-sided).
    """
    ours, theirs = ([per_user(one["ranks"][split], k) for split in splits] for one in (entry, other))
    together = np.mean if len({len(part) for part in ours}) == 1 else np.concatenate
    return paired(together(ours, axis=0), together(theirs, axis=0))


def paired(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """As :func:`compare`, of one figure (n,) for each user."""
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval()
    return {
        "ratio": float(ours.mean() / theirs.mean()) if theirs.mean() else float("nan"),
        "difference": float((ours - theirs).mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
    }
