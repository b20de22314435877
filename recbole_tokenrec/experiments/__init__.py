"""The paper's tables and figures as commands, ``recbole-tokenrec experiment NAME``: one module each.

A module has ``TITLE`` (one line), ``ARGUMENTS`` (its own, which the printed command repeats), ``add_arguments(parser)``
and ``run(bench, arguments) -> Report``. Trainings go through ``runs.py``, which keeps each in a file of its own: an
interrupted experiment continues where it stopped.
"""

NAMES = (
    "overall", "history", "generalize", "ablation", "masking", "codebook", "levers", "efficiency", "curves", "tune",
)  # fmt: skip
# Metrics that a report reads, so that one that is not computed is told before the trainings.
REPORTED = {
    **dict.fromkeys(NAMES, ("hit@20", "ndcg@20")),
    "overall": tuple(f"{name}@{k}" for name in ("hit", "ndcg") for k in (10, 20, 30)),
    **dict.fromkeys(("curves", "tune"), ("ndcg@20",)),
    "efficiency": (),
}
