"""Processes that share a piece of work and may die: what ``sweep`` and ``score`` run."""

from __future__ import annotations

import multiprocessing


def run_workers(target, job, number: int) -> list[int]:
    """Run ``target(job)`` in ``number`` processes to their end; the exit codes of those that failed.

    They are spawned, not forked: torch's threads do not survive a fork.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(job,)) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes if process.exitcode]
