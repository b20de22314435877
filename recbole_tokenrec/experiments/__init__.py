"""The paper's tables and figures as commands, ``recbole-tokenrec experiment NAME``: one module each.

A module has ``TITLE`` (one line), ``ARGUMENTS`` (its own, which the printed command repeats), ``add_arguments(parser)``
and ``run(bench, arguments) -> Report``. Trainings go through ``runs.py``, which keeps each in a file of its own: an
interrupted experiment continues where it stopped.
"""

NAMES = (
    "overall", "history", "generalize", "ablation", "masking", "codebook", "levers", "efficiency", "curves", "tune",
)  # fmt: skip
