"""Processes that share a piece of work and may die: what ``sweep`` and ``score`` run.

A process that dies is replaced at once. One that meets a mistake of the user's (a ``TokenRecError``) is not: the
mistake is told to whoever asked, and the others are stopped.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import wait

from recbole_tokenrec.errors import TokenRecError, TrainingError


def run_workers(target, job, number: int, most_deaths: int, what: str) -> int:
    """Run ``target(job)`` in ``number`` processes until each has come to its end; how many died and were replaced.

    They are spawned, not forked: torch's threads do not survive a fork.

    Args:
        target: a function of a module; may be started again at any time with the same ``job``.
        most_deaths: after which no further one is started.
        what: the command, for the error's text.

    Raises:
        TokenRecError: as one of the processes raised it.
        TrainingError: more of them died.
    """
    context = multiprocessing.get_context("spawn")
    running, deaths = {}, 0

    def start():
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report_mistakes, args=(target, job, theirs, os.getpid()))
        process.start()
        theirs.close()
        running[process.sentinel] = process, ours

    try:
        for _ in range(number):
            start()
        while running:
            for sentinel in wait(list(running)):
                process, pipe = running.pop(sentinel)
                process.join()
                with contextlib.suppress(EOFError):  # it said nothing
                    if pipe.poll():
                        kind, text = pipe.recv()
                        raise kind(text)
                if process.exitcode == 0:
                    continue
                deaths += 1
                if deaths > most_deaths:
                    raise TrainingError(f"{what}: {deaths} workers died, the last with exit code {process.exitcode}")
                start()
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()
    return deaths


def _report_mistakes(target, job, pipe, parent: int) -> None:
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of them; the parent ends the others
    try:
        target(job)
    except TokenRecError as error:
        pipe.send((type(error), str(error)))


def _die_with(parent: int) -> None:
    """Have the kernel end this process when ``parent`` is gone, however that went; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # gone before that
            os.kill(os.getpid(), signal.SIGTERM)
