"""Scoring a file of users: complete, without duplicates, also when a worker is killed; the same as recommend."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.harness import workers_of
from recbole_tokenrec import scoring
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.pipeline import run_models

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def checkpoint(toy_data, tmp_path_factory):
    keys = {"data_path": str(toy_data), "epochs": 3, "show_progress": False, "state": "ERROR", "use_gpu": False,
            "checkpoint_dir": str(tmp_path_factory.mktemp("bpr"))}  # fmt: skip
    return run_models(["BPR"], "toy", (), keys)["models"][0]["checkpoint"]


@pytest.mark.recipe
def test_a_killed_worker_costs_nothing(checkpoint, tmp_path):
    users = [f"g{n % 4}u{n % 12}" if n < 48 else f"stranger {n}" for n in range(4000)]
    known = [f"g{g}u{u}" for g in range(4) for u in range(12)]
    users[:48] = known
    (tmp_path / "users.txt").write_text("\n".join(users) + "\n\n")
    command = [
        sys.executable, "-m", "recbole_tokenrec.cli.main", "score", "--checkpoint", str(checkpoint), "--users_file",
        "users.txt", "--output", "out", "--k", "3", "--shard_size", "40", "--batch", "16", "--workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.time() + 300
    while time.time() < deadline and not list(tmp_path.glob("out/part-*.parquet")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-2000:]
    assert "4000 users in 100 parts" in printed
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == {"users": 4000, "parts": 100, "deaths": 1}
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted([f"part-{n:05d}.parquet" for n in range(100)] + ["plan.json", "score.json"])
    parts = [parquet.read_table(tmp_path / "out" / f"part-{n:05d}.parquet").to_pandas() for n in range(100)]
    assert [user for part in parts for user in part["user_id"][::3]] == users  # complete, in order, each once
    assert all((part["rank"] == [1, 2, 3] * (len(part) // 3)).all() for part in parts)
    from recbole_tokenrec.api import load

    alone = load(checkpoint).recommend(users=users[:40], k=3)
    assert parts[0]["item_id"].tolist() == alone["item_id"].tolist()
    assert parts[0]["score"].tolist() == pytest.approx(alone["score"].tolist(), abs=1e-6)


@pytest.mark.recipe
def test_data_that_have_moved_are_named(checkpoint, toy_data, tmp_path, monkeypatch):
    content = torch.load(checkpoint, pickle_module=pickle, weights_only=False)
    content["config"]["data_path"] = str(tmp_path / "away" / "toy")
    torch.save(content, tmp_path / "model.pth", pickle_protocol=4)
    (tmp_path / "users.txt").write_text("g0u0\n")
    command = ["score", "--checkpoint", str(tmp_path / "model.pth"), "--users_file", str(tmp_path / "users.txt"),
               "--output", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 2 and not (tmp_path / "out").exists()
    monkeypatch.chdir(toy_data.parent)
    assert main([*command, "--data_path", toy_data.name]) == 0


@pytest.mark.recipe
def test_parts_of_another_model_or_of_other_users_are_not_taken_for_these(checkpoint, tmp_path, capsys):
    model = tmp_path / "model.pth"
    shutil.copy(checkpoint, model)
    (tmp_path / "users.txt").write_text("g0u0\ng1u1\n")
    command = ["score", "--checkpoint", str(model), "--users_file", str(tmp_path / "users.txt"), "--output",
               str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    assert main(command) == 0  # nothing is left to do
    (tmp_path / "users.txt").write_text("g0u0\ng1u2\n")
    assert main(command) == 2 and "parts of another job (other users_sha256)" in capsys.readouterr().err
    (tmp_path / "users.txt").write_text("g0u0\ng1u1\n")
    content = torch.load(model, pickle_module=pickle, weights_only=False)
    content["state_dict"]["user_embedding.weight"] += 1
    torch.save(content, model, pickle_protocol=4)  # trained anew, under the same name
    assert main(command) == 2 and "parts of another job (other checkpoint_sha256)" in capsys.readouterr().err


@pytest.mark.recipe
def test_a_model_that_cannot_be_opened_is_one_message_and_leaves_nothing(checkpoint, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.txt").write_text("a\n")
    damaged = bytearray(Path(checkpoint).read_bytes())
    (tmp_path / "x.pth").write_bytes(damaged[: len(damaged) // 2])
    before = sorted(tmp_path.iterdir())
    for name, text in (("x.pth", "x.pth: the checkpoint cannot be read"), ("y.pth", "error: y.pth: no such file")):
        code = main(["score", "--checkpoint", name, "--users_file", "users.txt", "--output", "out", "--workers", "2"])
        printed = capfd.readouterr().err
        assert code == 2 and text in printed and "Traceback" not in printed and printed.count("error: ") == 1
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.unit
def test_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9\n")
    (tmp_path / "users.txt").write_text("a\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text("{}")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa\n")
    (tmp_path / "x.pth").write_bytes(b"x")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "plan.json").write_text("{")
    base = ["score", "--checkpoint", "x.pth", "--output"]
    for arguments, text in (
        ([*base, "new", "--users_file", "missing.txt"], "users_file: missing.txt cannot be read"),
        ([*base, "new", "--users_file", "empty.txt"], "users_file: empty.txt holds no ids"),
        ([*base, "new", "--users_file", "latin.txt"], "users_file: latin.txt cannot be read"),
        ([*base, "new", "--users_file", "bom.txt"], "users_file: bom.txt begins with a byte order mark"),
        ([*base, "torn", "--users_file", "users.txt"], "plan.json cannot be read"),
        ([*base, "out", "--users_file", "users.txt"], "holds parts of another job"),
        ([*base, "new", "--users_file", "users.txt", "--k", "0"], "--k: 0 is not allowed; allowed: int in [1, inf)"),
        ([*base, "new", "--users_file", "users.txt", "--memory_budget_gb=0"],
         "memory_budget_gb: 0.0 is not allowed; allowed: float in (0, inf)"),
        ([*base, "new", "--users_file", "users.txt", "--memory_budget_gb=nan"], "memory_budget_gb: nan is not allowed"),
        ([*base, "new", "--users_file", "users.txt", "--memory_budget_gb=0.05"],
         "memory_budget_gb: 0.05 is too little for x.pth: a process holds "),
        ([*base, "new", "--users_file", "users.txt", "surplus"], "'surplus' is not understood"),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.recipe
def test_a_worker_over_the_budget_is_one_message_and_leaves_nothing(checkpoint, tmp_path):
    """The command's own process has room, since it opens no model; a worker has not, whose libraries are more."""
    (tmp_path / "users.txt").write_text("g0u0\n")
    script = """
import sys
from recbole_tokenrec import scoring
from recbole_tokenrec.api import loading
from recbole_tokenrec.cli.main import main
if __name__ == "__main__":
    loading.least_gb = lambda path: 0.0
    sys.exit(main(sys.argv[1:]))
"""
    (tmp_path / "script.py").write_text(script)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "script.py", "score", "--checkpoint", str(checkpoint), "--users_file", "users.txt", "--output",
         "out", "--memory_budget_gb", "0.1"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: memory_budget_gb: 0.1 is too little for {checkpoint}: a process holds" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.unit
def test_rows_of_a_batch_fit_into_what_is_left(monkeypatch):
    monkeypatch.setattr(scoring, "rss_mb", lambda: 1024.0)
    job = scoring.Job("m", "u", "o", k=1000, batch=512, memory_budget_gb=2.0, shard_size=10, starts=(0,))
    assert scoring._users_at_once(job) == 512
    assert scoring._users_at_once(job._replace(memory_budget_gb=1.5)) == 2**29 // (4 * 512 * 1000)
    assert scoring._users_at_once(job._replace(memory_budget_gb=1.0001)) == 1


@pytest.mark.recipe
def test_a_batch_that_takes_more_than_the_budget_stops_with_the_figure(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "users.txt").write_text("g0u0\ng0u1\n")
    from recbole_tokenrec.api import load

    job = scoring.Job(str(checkpoint), str(tmp_path / "users.txt"), str(tmp_path), 3, 1, 1.0, 2, (0,))
    monkeypatch.setattr(scoring, "peak_rss_mb", lambda: 1025.0)
    with pytest.raises(ConfigError, match=r"1 users at once \(batch\): a process holds 1.00 GB then, or more"):
        scoring._write_shard(job, 0, load(checkpoint), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["users.txt"]
