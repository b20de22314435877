"""SIGKILL at random moments of every stage and of checkpoint writes; a full disk. ``killing.py`` does the killing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = [
    "--cf_embedding_size=16", "--mq_num_codebooks=2", "--mq_user_num_codebooks=2", "--mq_codebook_size=8",
    "--mq_codeword_dim=8", "--mq_hidden_size=16", "--cf_eval_step=1", "--llm_eval_step=1", "--show_progress=false",
    "--use_gpu=false", "--stage_cache=false", "--llm_projection_size=16",
]  # fmt: skip
TOY = [*SMALL, "--cf_epochs=3", "--cf_train_batch_size=16", "--mq_epochs=2", "--mq_min_steps=6",
       "--mq_train_batch_size=16", "--llm_epochs=3", "--llm_train_batch_size=16"]  # fmt: skip
ML_100K = [*SMALL, "--cf_epochs=3", "--cf_train_batch_size=128", "--mq_epochs=2", "--mq_min_steps=10",
           "--mq_train_batch_size=512", "--llm_epochs=3", "--llm_train_batch_size=128",
           "--prompt_max_history=10", "--prompt_decoder_items=10", "--llm_horizon=2"]  # fmt: skip


def kill(folder, number, clock, seed, arguments):
    # killing.py forks trainings off, and a fork cannot use a GPU that its parent has asked about.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(number), str(clock), str(seed), *arguments],
        env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert "error" not in report, report
    return report


def all_equal(report, number):
    runs = report["runs"]
    assert len(runs) == number
    for run in runs:
        assert run["killed"] == -9, json.dumps(run)  # text, which pytest does not shorten
        assert run["resumed"] == 0 and run["differences"] == [], json.dumps(run)


@pytest.mark.recipe
def test_three_kills(toy_data, tiny_t5, tmp_path):
    arguments = ["--dataset", "toy", "--data_path", str(toy_data), f"--llm_backbone={tiny_t5}", *TOY]
    all_equal(kill(tmp_path / "kills", 3, 0, 1, arguments), 3)


@pytest.mark.slow
def test_twenty_kills_and_five_more_on_ml_100k(tiny_t5, tmp_path):
    arguments = ["--dataset", "ml-100k", f"--llm_backbone={tiny_t5}", *ML_100K]
    report = kill(tmp_path / "kills", 20, 5, 2, arguments)
    print(json.dumps(report, indent=1))
    all_equal(report, 25)
    kinds = {run["kind"] for run in report["runs"] if not run["kind"].startswith("after")}
    assert {kind.split(":")[0] for kind in kinds} >= {"cf", "user_tokenizer", "item_tokenizer", "llm"}
    assert {kind.split(": ")[1] for kind in kinds} == {
        "step", "evaluation", "write, half there", "write, not in place", "write, in place",
    }  # fmt: skip


FULL = """
set -u
mount -t tmpfs -o size=600k none "$1" && cd "$1" || exit 77
shift
"$@"; echo "first: $?"
find . -name '*.tmp'; echo "temporary files above"
mount -o remount,size=200m .
"$@" --resume; echo "second: $?"
cp r.json "$HOME/"; cp out/*.pth "$HOME/"
"""


@pytest.mark.recipe
def test_a_full_disk_is_one_clear_error_and_costs_nothing(toy_data, tiny_t5, tmp_path):
    """On a tmpfs of 600 kB, in a mount namespace of its own; then with room, resumed."""
    can = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    if can.returncode:
        pytest.skip(f"no mount namespaces here: {can.stderr.decode().strip()}")
    (tmp_path / "small").mkdir()
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable, "-m", "recbole_tokenrec.cli.main", "run", "--dataset", "toy", "--data_path", str(toy_data),
        f"--llm_backbone={tiny_t5}", "--result_file", "r.json", "--output_dir", "out", "--checkpoint_every_seconds=0",
        *TOY,
    ]  # fmt: skip
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", FULL, "full", str(tmp_path / "small"), *command],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "first: 2" in done.stdout and "second: 0" in done.stdout, done.stdout + done.stderr
    assert "error: " in done.stderr and "cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr and ".tmp" not in done.stdout.split("temporary")[0]
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import killing
    finally:
        sys.path.pop(0)
    (alone := tmp_path / "alone").mkdir()
    subprocess.run(command, cwd=alone, env=environment, capture_output=True, timeout=600, check=True)
    (row,) = json.loads((tmp_path / "home" / "r.json").read_text())["models"]
    expected, _ = killing.outcome(alone)
    assert row["test"] == expected["test"] and row["valid"] == expected["valid"]


@pytest.mark.unit
def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """The largest file this process may write is smaller than the checkpoint."""
    script = """
import resource, signal, sys, torch
from recbole_tokenrec.checkpoints import load_checkpoint, save_checkpoint
from recbole_tokenrec.errors import CheckpointError, OutputError
from recbole_tokenrec.pipeline import write_json
save_checkpoint("x.pt", {"a": torch.ones(2)})
write_json("r.json", {"a": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
for write in (lambda: save_checkpoint("x.pt", {"a": torch.zeros(100000)}), lambda: write_json("r.json", [0] * 99999)):
    try:
        write()
    except (CheckpointError, OutputError) as error:
        print(type(error).__name__, error)
assert load_checkpoint("x.pt")["a"].tolist() == [1, 1] and open("r.json").read() == '{\\n "a": 1\\n}\\n'
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "CheckpointError x.pt: the checkpoint cannot be written (File too large)",
        "OutputError r.json: the result cannot be written (File too large)",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "x.pt"]
