"""Finds the worker processes that a command has started, so that a test can kill one."""

import contextlib
from pathlib import Path


def workers_of(pid: int) -> list[int]:
    """Process numbers of the spawned children of ``pid``."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
    return sorted(found)
