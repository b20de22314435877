"""What every benchmark shares: rounds that alternate between the cases, the machine's own peak, the JSON file.

Cases are timed side by side, round after round, so that a machine that is busy with other work slows all of them
alike; medians and ratios are taken over the rounds. CPU seconds stand beside wall seconds: on one thread they are
what the work itself takes, however many others share the core.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from recbole_tokenrec.measure import keep_freed_memory, machine
from recbole_tokenrec.pipeline import plain, versions, write_json

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
USE = ("use", "serve_load")  # benchmarks of the page use.md; the others belong to performance.md


class Timing(NamedTuple):
    """Seconds of one case, round by round."""

    wall: list[float]
    cpu: list[float]

    def median(self, kind: str = "wall") -> float:
        return statistics.median(getattr(self, kind))

    def report(self) -> dict:
        medians = {"median_wall_s": self.median(), "median_cpu_s": self.median("cpu")}
        return {"wall_s": self.wall, "cpu_s": self.cpu, **medians}


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def side_by_side(cases: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Time each case once a round, ``warmup`` rounds uncounted."""
    timings = {name: Timing([], []) for name in cases}
    for number in range(warmup + rounds):
        for name, work in cases.items():
            wall, cpu = seconds_of(work)
            if number >= warmup:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def in_a_process(work: Callable, *arguments):
    """``work(*arguments)`` in a fresh process, so that its peak of memory is its own; an error there is raised here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        answer = pool.submit(work, *arguments).result()
    print(answer, flush=True)
    return answer


def gemm_gflops(dtype: torch.dtype = torch.float32, sizes=(512, 1024, 2048), rounds: int = 5) -> dict:
    """The machine's own matrix-product peak for this many threads: the best of square products, by CPU and by wall.

    Per CPU second it is the peak of the threads' share of the machine; ``best_per_wall_s`` falls when others compute.
    """
    found = {}
    for size in sizes:
        a, b, out = (torch.randn(size, size).to(dtype) for _ in range(3))
        timing = side_by_side({"gemm": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}, rounds)["gemm"]
        work = 2 * size**3 / 1e9
        threads = torch.get_num_threads()
        found[size] = {"per_wall_s": work / min(timing.wall), "per_cpu_s": threads * work / min(timing.cpu)}
    return {
        "dtype": str(dtype).split(".")[-1],
        "by_size": found,
        "best_per_wall_s": max(entry["per_wall_s"] for entry in found.values()),
        "best_per_cpu_s": max(entry["per_cpu_s"] for entry in found.values()),
    }


def parser(description: str, name: str, rounds: int = 5) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    result.add_argument("--threads", type=_positive, default=1, help="torch threads (default: 1)")
    result.add_argument("--rounds", type=_positive, default=rounds, help=f"rounds, medians count (default: {rounds})")
    result.add_argument("--seed", type=int, default=2020)
    where = f"docs/results/{folder_of(name)}/{name}[-<part>].json"
    result.add_argument("--out", type=Path, help=f"JSON file (default: {where})")
    return result


def folder_of(name: str) -> str:
    """Where under docs/results the JSON files of a benchmark lie; the page beside has the same name."""
    return "use" if name in USE else "performance"


def begin(arguments) -> dict:
    """Set threads, seed and allocator as the command line of the package does; what the machine was like before."""
    if arguments.out is None:
        name = sys.modules["__main__"].__spec__.name.split(".")[-1]
        parts = [name, getattr(arguments, "part", None)]
        arguments.out = RESULTS / folder_of(name) / ("-".join(part for part in parts if part) + ".json")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    keep_freed_memory()
    return {**machine(), "load_average": os.getloadavg(), "date": time.strftime("%Y-%m-%d %H:%M")}


def finish(arguments, before: dict, results: dict) -> None:
    """Write the JSON file and say where it is."""
    known = {key: value for key, value in vars(arguments).items() if key not in ("out", "run", "folders", "keep")}
    content = {
        "arguments": plain({key: str(value) if isinstance(value, Path) else value for key, value in known.items()}),
        "machine": {**before, "load_average_after": os.getloadavg()},
        "commit": commit(),
        "versions": versions(),
        **plain(results),
    }
    write_json(arguments.out, content)
    print(f"written: {arguments.out}", flush=True)


def commit() -> str | None:
    """Of the checkout that was measured, with a + if it was changed since; None outside git."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; allowed: an int >= 1")
    return value


def workers_of(pid: int) -> list[int]:
    """Process numbers of the spawned children of ``pid`` (Linux)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
    return sorted(found)
