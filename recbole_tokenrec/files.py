"""Files that are written whole or not at all, and that say in words why one could not be written.

What a run writes is written beside its target and then renamed onto it: whoever is killed at any moment leaves the old
file or the new one, never half of one. A killed writer also leaves its temporary file, which the next writer in the
same folder takes away.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from pathlib import Path

from recbole_tokenrec.errors import OutputError, is_want_of_memory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_STALE_AFTER = 600.0  # seconds since its last change after which nobody can be writing a temporary file any more


@contextlib.contextmanager
def written_whole(path, what: str = "the file", error: type = OutputError):
    """``with written_whole(path) as file:`` gives a binary file that takes the place of ``path`` at the end.

    The folder is made if it is missing.

    Args:
        what: what is being written, for the error's text.
        error: class of the error raised if it cannot be.

    Raises:
        OutputError, or ``error``: the disk is full, the folder may not be written, …; ``path`` is then as before.
    """
    path = Path(path)
    # Beside the target, since a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _take_away_stale(path.parent)
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as problem:  # torch turns a full disk into a RuntimeError
        if isinstance(problem.__context__, (KeyboardInterrupt, SystemExit)):
            raise problem.__context__ from None  # torch cannot close its archive where Ctrl-C has cut it
        if is_want_of_memory(problem):  # of what makes the content
            raise
        raise error(f"{path}: {what} cannot be written ({reason(problem)})") from problem
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # there only after a failure


def reason(problem: BaseException) -> str:
    """The operating system's words for what went wrong, also where a library wrapped them."""
    cause = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    lines = str(problem).splitlines()
    return lines[0] if lines else type(problem).__name__


def _take_away_stale(folder: Path) -> None:
    """Of any target: a checkpoint's name says when it was begun, so that nobody writes to a killed one's again."""
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another writer was faster
            if _TEMPORARY.fullmatch(left.name) and time.time() - left.stat().st_mtime > _STALE_AFTER:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power failure, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def exclusive(path, wait: bool = True):
    """``with exclusive(path) as held:`` one process at a time, by a lock on the file ``path`` (made, and left there).

    The kernel lets go of a lock when its process dies, however it dies. Where there are no such locks (Windows), every
    process is let in.

    Args:
        wait: until the lock is free; otherwise ``held`` is False if it is not.

    Raises:
        OutputError: the file cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as problem:
        raise OutputError(f"{path}: the lock cannot be made ({reason(problem)})") from problem
    with file:
        yield fcntl is None or _lock(file, wait)  # closing the file lets go


def _lock(file, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
