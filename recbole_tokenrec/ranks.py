"""Every user's rank of the held-out item, read from what RecBole's evaluator is given: paired tests need it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.register import metrics_dict

from recbole_tokenrec.errors import ConfigError


def with_ranks(trainer, data, evaluate: Callable) -> tuple[dict, list[int]]:
    """RecBole's metrics, and in the order of user numbers the rank of each user's item; 0 beyond max(topk).

    Metrics and ranks come from the same matrix of hits, so that they cannot differ. No ranks ([]) where somebody has
    several items to be found (a split by ratio), or where no metric looks at a list.

    Args:
        trainer: RecBole's or ours.
        data: a full-sort evaluation loader.
        evaluate: called with ``data``; returns the metrics.
    """
    seen = {}
    original = trainer.evaluator.evaluate

    def listen(struct):
        if "rec.topk" in struct:  # none of RecBole's other metrics asks for it
            seen["topk"] = struct.get("rec.topk").numpy()  # (n, max(topk) hits, then the number of positives)
        return original(struct)

    trainer.evaluator.evaluate = listen
    try:
        metrics = evaluate(data)
    finally:
        trainer.evaluator.evaluate = original
    if "topk" not in seen or (seen["topk"][:, -1] != 1).any():
        return metrics, []
    hits = seen["topk"][:, :-1]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    return metrics, ranks[np.argsort(users_of(data), kind="stable")].tolist()


def need_ranks(config, reported: tuple[str, ...] = ()) -> None:
    """Raise a ``ConfigError`` unless there will be every user's rank (:func:`with_ranks`) and all that a report reads.

    Args:
        config: of a training that has not begun.
        reported: the metrics that the report reads, such as ``hit@20``.
    """
    how, names = config["eval_args"], config["metrics"]
    names = names if isinstance(names, list) else [names]
    if "LS" not in how["split"] or set(how["mode"].values()) != {"full"}:
        raise ConfigError(
            f"eval_args: {how} is not allowed; experiments compare users by the rank of the one item held out, among "
            "all items: split: {LS: valid_and_test} and mode: full"
        )
    if not any(issubclass(metrics_dict[name.lower()], TopkMetric) for name in names):
        raise ConfigError(f"metrics: {names} is not allowed; allowed: a list with at least one of Hit, NDCG, Recall, …")
    topk = config["topk"] if isinstance(config["topk"], list) else [config["topk"]]
    spelt = {"hit": "Hit", "ndcg": "NDCG"}
    kinds, places = zip(*(metric.split("@") for metric in reported)) if reported else ((), ())
    if set(kinds) - {name.lower() for name in names}:
        needed = ", ".join(spelt[kind] for kind in dict.fromkeys(kinds))
        raise ConfigError(f"metrics: {names} is not allowed; allowed: a list with {needed}: this experiment reports it")
    if set(map(int, places)) - set(topk):
        needed = ", ".join(dict.fromkeys(places))
        raise ConfigError(
            f"topk: {topk} is not allowed; allowed: a list with {needed}, which this experiment reports (a data set of "
            "fewer items can be had by `recbole-tokenrec run` only)"
        )


def metrics_of(ranks: list[int], places: np.ndarray, k: int = 20) -> dict[str, float]:
    """``hit@k`` and ``ndcg@k`` of some users: ``places`` (n,) in ``ranks``, as :func:`with_ranks` returns them."""
    part = np.asarray(ranks)[places]
    found = (part > 0) & (part <= k)
    return {f"hit@{k}": float(found.mean()), f"ndcg@{k}": float((found / np.log2(np.maximum(part, 1) + 1)).mean())}


def users_of(data) -> np.ndarray:
    """User of each row of the evaluator's matrix."""
    if hasattr(data, "uid_list"):
        return data.uid_list.numpy()
    return data._dataset.inter_feat[data._dataset.uid_field].numpy()
