"""Every user's rank of the held-out item, read from what RecBole's evaluator is given: paired tests need it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def with_ranks(trainer, data, evaluate: Callable) -> tuple[dict, list[int]]:
    """RecBole's metrics, and in the order of user numbers the rank of each user's item; 0 beyond max(topk).

    Metrics and ranks come from the same matrix of hits, so that they cannot differ.

    Args:
        trainer: RecBole's or ours.
        data: a full-sort evaluation loader with one relevant item a user (leave-one-out).
        evaluate: called with ``data``; returns the metrics.
    """
    seen = {}
    original = trainer.evaluator.evaluate

    def listen(struct):
        seen["hits"] = struct.get("rec.topk")[:, :-1].numpy()  # (n, max(topk)); the last column counts positives
        return original(struct)

    trainer.evaluator.evaluate = listen
    try:
        metrics = evaluate(data)
    finally:
        trainer.evaluator.evaluate = original
    hits = seen["hits"]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    return metrics, ranks[np.argsort(_users_of(data), kind="stable")].tolist()


def metrics_of(ranks: list[int], places: np.ndarray, k: int = 20) -> dict[str, float]:
    """``hit@k`` and ``ndcg@k`` of some users: ``places`` (n,) in ``ranks``, as :func:`with_ranks` returns them."""
    part = np.asarray(ranks)[places]
    found = (part > 0) & (part <= k)
    return {f"hit@{k}": float(found.mean()), f"ndcg@{k}": float((found / np.log2(np.maximum(part, 1) + 1)).mean())}


def _users_of(data) -> np.ndarray:
    """User of each row of the evaluator's matrix."""
    if hasattr(data, "uid_list"):
        return data.uid_list.numpy()
    return data._dataset.inter_feat[data._dataset.uid_field].numpy()
