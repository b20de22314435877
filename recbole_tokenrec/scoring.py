"""Recommendations for very many users: shards of a file of ids, scored by several processes, written as Parquet.

A shard is a range of lines of the users' file and becomes ``part-NNNNN.parquet``, written whole or not at all. A
process takes any shard that is neither written nor locked; if it dies, the kernel frees its lock, and the shard is
scored anew by another. The same command goes on where it stopped. No process holds more than its model and ``batch``
users at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from recbole_tokenrec.errors import ConfigError, DataError, TrainingError
from recbole_tokenrec.files import exclusive, written_whole
from recbole_tokenrec.pipeline import write_json
from recbole_tokenrec.workers import run_workers

MOST_DEATHS = 3  # of workers, for each worker asked for


class Job(NamedTuple):
    """What every process knows. ``starts``: byte at which each shard begins in ``users_file``."""

    checkpoint: str
    users_file: str
    output: str
    k: int
    batch: int
    shard_size: int
    starts: tuple[int, ...]

    def part(self, number: int) -> Path:
        return Path(self.output) / f"part-{number:05d}.parquet"


def score(checkpoint, users_file, output, k: int = 10, shard_size: int = 10_000, batch: int = 512, workers: int = 1):
    """Write the ``k`` best items of every user in ``users_file`` (one raw id a line) to the folder ``output``.

    Returns:
        ``{"users": …, "parts": …, "deaths": workers that died}``, which is also written to ``output/score.json``.

    Raises:
        ConfigError: pyarrow is missing, or ``output`` holds parts of another job.
        DataError: the file cannot be read or holds no ids.
        TrainingError: workers die faster than they can be replaced.
    """
    _parquet()
    users, starts = _shards(users_file, shard_size)
    paths = [str(Path(path).absolute()) for path in (checkpoint, users_file, output)]
    job = Job(*paths, k, batch, shard_size, tuple(starts))
    _claim_folder(job, users)
    deaths = 0
    while missing := [number for number in range(len(starts)) if not job.part(number).exists()]:
        codes = run_workers(_work, job, min(workers, len(missing)))
        deaths += len(codes)
        if deaths > MOST_DEATHS * workers:
            raise TrainingError(f"score: {deaths} workers died, the last with exit codes {codes}; see above")
    summary = {"users": users, "parts": len(starts), "deaths": deaths}
    write_json(Path(output) / "score.json", summary)
    for number in range(len(starts)):
        job.part(number).with_suffix(".lock").unlink(missing_ok=True)
    return summary


def _work(job: Job) -> None:
    """Score every shard that nobody else does; the model is opened once."""
    from recbole_tokenrec.api import load

    model = None
    for number in range(len(job.starts)):
        with exclusive(job.part(number).with_suffix(".lock"), wait=False) as held:
            if held and not job.part(number).exists():
                model = model or load(job.checkpoint)
                _write_shard(job, number, model)


def _write_shard(job: Job, number: int, model) -> None:
    pyarrow, parquet = _parquet()
    schema = pyarrow.schema([
        ("user_id", pyarrow.string()), ("item_id", pyarrow.string()), ("rank", pyarrow.int32()),
        ("score", pyarrow.float32()), ("kind", pyarrow.string()),
    ])  # fmt: skip
    with written_whole(job.part(number), "the shard") as file, parquet.ParquetWriter(file, schema) as writer:
        for users in _batches(job, number):
            frame = model.recommend(users=users, k=job.k)
            writer.write_table(pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False))


def _batches(job: Job, number: int):
    """The shard's ids, ``batch`` at a time."""
    end = job.starts[number + 1] if number + 1 < len(job.starts) else None
    with open(job.users_file, "rb") as file:
        file.seek(job.starts[number])
        ids = []
        while (end is None or file.tell() < end) and (line := file.readline()):
            if user := line.decode("utf-8").strip():
                ids.append(user)
            if len(ids) == job.batch:
                yield ids
                ids = []
        if ids:
            yield ids


def _shards(users_file, size: int) -> tuple[int, list[int]]:
    """Number of ids, and the byte at which each shard of ``size`` of them begins."""
    users, starts, place = 0, [], 0
    try:
        with open(users_file, "rb") as file:
            for line in file:
                if line.strip():
                    line.decode("utf-8")
                    if users % size == 0:
                        starts.append(place)
                    users += 1
                place += len(line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"users_file: {users_file} cannot be read ({error})") from error
    if not users:
        raise DataError(f"users_file: {users_file} holds no ids")
    return users, starts


def _claim_folder(job: Job, users: int) -> None:
    """Write down whose parts the folder holds, or see that they are this job's."""
    plan = {"checkpoint": job.checkpoint, "users_file": job.users_file, "users": users, "k": job.k,
            "shard_size": job.shard_size}  # fmt: skip
    file = Path(job.output) / "plan.json"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != plan:
            raise ConfigError(f"output: {job.output} holds parts of another job; see {file}, or name another folder")
        return
    write_json(file, plan)


def _parquet():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("score needs pyarrow: pip install 'recbole-tokenrec[score]'") from error
    return pyarrow, parquet
