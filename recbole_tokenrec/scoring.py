"""Recommendations for very many users: shards of a file of ids, scored by several processes, written as Parquet.

A shard is a range of lines of the users' file and becomes ``part-NNNNN.parquet``, written whole or not at all. A
process takes any shard that is neither written nor locked; if it dies, the kernel frees its lock, and the shard is
scored anew by another. The same command goes on where it stopped, if model, users and settings are still the same
ones (``plan.json`` says which they were; batches, processes and memory may be others).

Each process obeys ``memory_budget_gb``, measured as resident memory. A model that alone needs more is refused, by the
size of its file before it is read, or at the latest when it is open. What is left then bounds the scores and prompts of
a batch (``load``'s ``process_budget_gb``) and its rows (``_users_at_once``). Should a batch take more all the same, the
process stops and says how much it was.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from recbole_tokenrec.errors import CheckpointError, ConfigError, DataError, TokenRecError
from recbole_tokenrec.files import exclusive, written_whole
from recbole_tokenrec.measure import must_fit, peak_rss_mb, rss_mb
from recbole_tokenrec.options import check
from recbole_tokenrec.pipeline import write_json
from recbole_tokenrec.settings import OPTIONS
from recbole_tokenrec.workers import run_workers

MOST_DEATHS = 3  # of workers, for each worker asked for
_ROW_BYTES = 512  # of a recommendation on its way from numbers to a data frame, to an Arrow table, to Parquet


class Job(NamedTuple):
    """What every process knows. ``starts``: byte at which each shard begins in ``users_file``."""

    checkpoint: str
    users_file: str
    output: str
    k: int
    batch: int
    memory_budget_gb: float
    shard_size: int
    starts: tuple[int, ...]
    data_path: str | None = None

    def part(self, number: int) -> Path:
        return Path(self.output) / f"part-{number:05d}.parquet"

    def lock(self, number: int) -> Path:
        return self.part(number).with_suffix(".lock")


def score(
    checkpoint, users_file, output, k: int = 10, shard_size: int = 10_000, batch: int = 512, workers: int = 1,
    memory_budget_gb: float = 2.0, data_path=None,
) -> dict:  # fmt: skip
    """Write the ``k`` best items of every user in ``users_file`` (one raw id a line) to the folder ``output``.

    Args:
        batch: most users in memory at once; fewer where the budget wants it.
        memory_budget_gb: GiB of resident memory that each process may hold.
        data_path: folder that holds the data set's folder, for checkpoints without ids, if it has moved.

    Returns:
        ``{"users": …, "parts": …, "deaths": workers that died}``, which is also written to ``output/score.json``.

    Raises:
        ConfigError: pyarrow is missing, ``output`` holds parts of another job, or the budget is too small.
        CheckpointError: the model cannot be opened.
        DataError: the file cannot be read or holds no ids.
        TrainingError: too many workers died.
    """
    from recbole_tokenrec.api.loading import find, least_gb

    _parquet()
    budget = check("memory_budget_gb", memory_budget_gb, OPTIONS["memory_budget_gb"])
    users, starts, digest = _shards(users_file, shard_size)
    model = find(checkpoint)
    must_fit(model, budget, least_gb(model))
    paths = [str(Path(path).absolute()) for path in (model, users_file, output)]
    data = None if data_path is None else str(Path(data_path).absolute())
    job = Job(*paths, k, batch, budget, shard_size, tuple(starts), data)
    plan = {"checkpoint_sha256": _digest_of(job.checkpoint), "users_sha256": digest, "users": users, "k": k,
            "shard_size": shard_size}  # fmt: skip
    _claim_folder(job, plan)
    missing = [number for number in range(len(starts)) if not job.part(number).exists()]
    deaths = 0
    try:
        if missing:
            deaths = run_workers(_work, job, min(workers, len(missing)), MOST_DEATHS * workers, "score")
    except TokenRecError:
        if not any(job.part(number).exists() for number in range(len(starts))):
            _leave_as_it_was(job)
        raise
    summary = {"users": users, "parts": len(starts), "deaths": deaths}
    write_json(Path(output) / "score.json", summary)
    for number in range(len(starts)):
        job.lock(number).unlink(missing_ok=True)
    for left in Path(output).glob(".part-*.tmp"):  # of workers that died; every part is there, so nobody writes one
        left.unlink(missing_ok=True)
    return summary


def _work(job: Job) -> None:
    """Score every shard that nobody else does, then wait for the others'; the model is opened once."""
    from recbole_tokenrec.api.loading import load

    model, at_once = None, 0
    for wait in (False, True):  # in the end, a shard that another process holds is there soon, or he dies
        for number in range(len(job.starts)):
            if job.part(number).exists():
                continue
            with exclusive(job.lock(number), wait) as held:
                if held and not job.part(number).exists():
                    if model is None:
                        model = load(job.checkpoint, data_path=job.data_path, process_budget_gb=job.memory_budget_gb)
                        at_once = _users_at_once(job)
                    _write_shard(job, number, model, at_once)


def _users_at_once(job: Job) -> int:
    """Users whose rows fit into a quarter of what the open model leaves of the budget, ``batch`` at the most."""
    left = job.memory_budget_gb * 2**30 - rss_mb() * 2**20
    return max(1, min(job.batch, int(left / 4 / (_ROW_BYTES * job.k))))


def _write_shard(job: Job, number: int, model, at_once: int) -> None:
    pyarrow, parquet = _parquet()
    schema = pyarrow.schema([
        ("user_id", pyarrow.string()), ("item_id", pyarrow.string()), ("rank", pyarrow.int32()),
        ("score", pyarrow.float32()), ("kind", pyarrow.string()),
    ])  # fmt: skip
    with written_whole(job.part(number), "the shard") as file, parquet.ParquetWriter(file, schema) as writer:
        for users in _batches(job, number, at_once):
            frame = model.recommend(users=users, k=job.k)
            writer.write_table(pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False))
            must_fit(f"{len(users)} users at once (batch)", job.memory_budget_gb, peak_rss_mb() / 1024)


def _batches(job: Job, number: int, at_once: int):
    """The shard's ids, ``at_once`` at a time."""
    end = job.starts[number + 1] if number + 1 < len(job.starts) else None
    with open(job.users_file, "rb") as file:
        file.seek(job.starts[number])
        ids = []
        while (end is None or file.tell() < end) and (line := file.readline()):
            if user := line.decode("utf-8").strip():
                ids.append(user)
            if len(ids) == at_once:
                yield ids
                ids = []
        if ids:
            yield ids


def _shards(users_file, size: int) -> tuple[int, list[int], str]:
    """Number of ids, the byte at which each shard of ``size`` of them begins, and the SHA-256 of the file."""
    users, starts, place, digest = 0, [], 0, hashlib.sha256()
    try:
        with open(users_file, "rb") as file:
            for line in file:
                if not place and line.startswith(codecs.BOM_UTF8):
                    raise DataError(f"users_file: {users_file} begins with a byte order mark; write it as plain UTF-8")
                if line.strip():
                    line.decode("utf-8")
                    if users % size == 0:
                        starts.append(place)
                    users += 1
                digest.update(line)
                place += len(line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"users_file: {users_file} cannot be read ({error})") from error
    if not users:
        raise DataError(f"users_file: {users_file} holds no ids")
    return users, starts, digest.hexdigest()


def _digest_of(checkpoint) -> str:
    """SHA-256 of the file, or of the files of a folder: a model that was trained anew in its place is another one."""
    path, digest = Path(checkpoint), hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with open(file, "rb") as content:
                    while block := content.read(1 << 20):
                        digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _claim_folder(job: Job, plan: dict) -> None:
    """Write down whose parts the folder holds, or see that they are this job's."""
    file = Path(job.output) / "plan.json"
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return write_json(file, plan)
    except (OSError, ValueError) as error:
        raise ConfigError(f"output: {file} cannot be read ({error}); name another folder") from error
    if earlier != plan:
        other = [key for key in plan if not isinstance(earlier, dict) or earlier.get(key) != plan[key]]
        raise ConfigError(
            f"output: {job.output} holds parts of another job (other {', '.join(other)}); name another folder"
        )


def _leave_as_it_was(job: Job) -> None:
    """Nothing was scored: take away what :func:`score` put into the folder, and the folder if that was all."""
    for number in range(len(job.starts)):
        job.lock(number).unlink(missing_ok=True)
    (Path(job.output) / "plan.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        Path(job.output).rmdir()


def _parquet():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("score needs pyarrow: pip install 'recbole-tokenrec[score]'") from error
    return pyarrow, parquet
