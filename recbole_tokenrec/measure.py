"""What a piece of work costs (seconds by the wall clock and of the processor, peak memory), and on which machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time
from pathlib import Path

import psutil  # a dependency of RecBole's
import torch

from recbole_tokenrec.errors import ConfigError

try:
    import resource
except ImportError:  # Windows
    resource = None

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Cost:
    """``with Cost() as cost: …`` then ``cost.seconds``, ``cost.cpu_seconds`` and ``cost.peak_rss_mb``.

    The processor's seconds are those of all threads of this process: what one thread takes if nothing disturbs it.

    On Linux the kernel's high-water mark is reset first, so that the peak is this block's own; elsewhere it is the
    process's so far.
    """

    def __enter__(self) -> Cost:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        forget_peak()
        return self

    def __exit__(self, *exception) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu_seconds = time.process_time() - self._cpu_began
        self.peak_rss_mb = peak_rss_mb()


def machine() -> dict:
    """What numbers depend on besides code, data and seed: processors of another kind round differently."""
    return {
        "cpu": _line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": torch.get_num_threads(),
    }


def keep_freed_memory() -> None:
    """Ask glibc's malloc to keep freed memory for the next training step instead of giving it back to the kernel.

    A step's large tensors are mapped and faulted in anew otherwise: an eighth of a CPU step's time. Where there is
    no glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def forget_peak() -> None:
    """Let :func:`peak_rss_mb` count from now; not on Linux, or not allowed: it goes on counting the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """Resident memory's high-water mark in MiB."""
    return _status("VmHWM") or _peak()


def rss_mb() -> float:
    """Resident memory in MiB; where there is no ``/proc``, its high-water mark."""
    return _status("VmRSS") or _peak()


def must_fit(what, budget_gb: float, needed_gb: float) -> None:
    """Raise a ConfigError that names the figure needed, unless a process with ``what`` stays below its budget."""
    if needed_gb >= budget_gb:
        raise ConfigError(
            f"memory_budget_gb: {budget_gb:g} is too little for {what}: a process holds {needed_gb:.2f} GB then, or "
            "more; raise it"
        )


def _status(key: str) -> float | None:
    found = _line_of("/proc/self/status", key)
    return None if found is None else int(found.split()[0]) / 1024


def _line_of(file: str, key: str) -> str | None:
    """What stands behind ``key`` and a colon in a file of Linux's ``/proc``; None: no such file or key."""
    path = Path(file)
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _peak() -> float:
    if resource is None:
        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
