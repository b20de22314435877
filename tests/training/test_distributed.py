"""Two gloo processes under torchrun: the metrics are one process's, checkpoints are whole, a death hangs nobody."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.training.distributed import average_gradients, own_batches, process_group

SMALL = [
    "--cf_embedding_size=16", "--mq_num_codebooks=2", "--mq_user_num_codebooks=2", "--mq_codebook_size=8",
    "--mq_codeword_dim=8", "--mq_hidden_size=16", "--cf_eval_step=1", "--llm_eval_step=1", "--show_progress=false",
    "--use_gpu=false", "--stage_cache=false", "--llm_projection_size=16", "--cf_epochs=3", "--cf_train_batch_size=16",
    "--mq_epochs=2", "--mq_min_steps=6", "--mq_train_batch_size=16", "--llm_epochs=3", "--llm_train_batch_size=10",
    "--checkpoint_every_seconds=0", "--distributed_timeout=60", "--eval_batch_size=500", "--prompt_decoder_items=3",
    "--llm_horizon=2",
]  # fmt: skip


def torchrun(folder, data, backbone, *more):
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
            "recbole_tokenrec.cli.main", "run", "--dataset", "toy", "--data_path", str(data),
            f"--llm_backbone={backbone}", "--output_dir", "out", "--result_file", "r.json", *SMALL, *more,
        ],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def ended(process, seconds) -> str:
    """What it printed; fails, and ends the whole group, if it is still there after ``seconds``."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {seconds} s: {process.communicate()[0][-2000:]}")


def one_process_agrees(folder) -> tuple[dict, float]:
    """The checkpoint of two processes, loaded and evaluated in this one: its row, and the largest difference."""
    from recbole.quick_start import load_data_and_model  # not at the top: spawned processes import this file first
    from recbole.utils import get_trainer

    (row,) = json.loads((folder / "r.json").read_text())["models"]
    config, model, _, _, valid, test = load_data_and_model(row["checkpoint"])
    trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    alone = {split: trainer.evaluate(data, load_best_model=False) for split, data in (("valid", valid), ("test", test))}
    together = {split: row[split] for split in alone}
    for score in ("dot", "cosine"):
        alone[score] = trainer.evaluate_collaborative(test, score)
        together[score] = row["collaborative"][score]["test"]
    assert alone["test"].keys() == together["test"].keys() and len(alone["test"]) > 1
    largest = max(abs(alone[what][name] - together[what][name]) for what in alone for name in alone[what])
    assert largest < 1e-6
    return row, largest


@pytest.mark.recipe
def test_two_processes_train_and_evaluate_as_one(toy_data, tiny_t5, tmp_path):
    process = torchrun(tmp_path / "two", toy_data, tiny_t5)
    printed = ended(process, 500)
    assert process.returncode == 0, printed[-3000:]
    assert printed.count("its collaborative stage, dot") == 2  # one table, two rows of it
    row, _ = one_process_agrees(tmp_path / "two")
    assert row["test"]["hit@10"] > 0.5  # chance is one in four; the training is short
    assert [path.name[:8] for path in (tmp_path / "two/out/resume").iterdir()] == ["finished"]


@pytest.mark.recipe
def test_the_death_of_one_ends_all(toy_data, tiny_t5, tmp_path):
    folder = tmp_path / "two"
    process = torchrun(folder, toy_data, tiny_t5, "--llm_epochs=1000", "--llm_stopping_step=1000")
    deadline = time.time() + 400
    while time.time() < deadline and not list(folder.glob("out/resume/llm-*")):
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.5)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    began = time.time()
    ended(process, 120)
    assert process.returncode != 0 and time.time() - began < 90  # the timeout is 60
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, 0)
            pytest.fail(f"process {worker} is still there")


def children(pid) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if int(text.rpartition(")")[2].split()[1]) == pid and "python" in text:
                found.append(int(status.parent.name))
    return sorted(found)


@pytest.mark.slow
def test_ten_runs_without_a_hang(toy_data, tiny_t5, tmp_path):
    rows = []
    for number in range(10):
        began = time.time()
        process = torchrun(tmp_path / str(number), toy_data, tiny_t5)
        printed = ended(process, 900)
        assert process.returncode == 0, printed[-3000:]
        row, largest = one_process_agrees(tmp_path / str(number))
        rows.append(row)
        print(f"run {number}: {time.time() - began:.0f} s, ndcg@10 {row['test']['ndcg@10']:.4f}, "
              f"largest difference from one process {largest:.1e}", flush=True)  # fmt: skip
    assert all(row["test"] == rows[0]["test"] for row in rows)


@pytest.mark.unit
def test_one_process_is_left_as_it_was():
    assert list(own_batches([1, 2, 3])) == [(1, 1), (2, 1), (3, 1)]
    parameter = torch.nn.Parameter(torch.ones(2))
    average_gradients([parameter], 1)
    assert parameter.grad is None


@pytest.mark.unit
def test_wrong_settings(monkeypatch):
    with process_group(-1, False):
        pass  # one process needs no timeout
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="distributed_timeout: -1 is not allowed"), process_group(-1, False):
        pass
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="the processes do not meet at 127.0.0.1:1 "), process_group(3, False):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'two', which is no number"), process_group(60, False):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK.*start the processes with torchrun"), process_group(60, False):
        pass


def _average(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=2)
    both, one, none = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    both.grad = torch.full((3,), float(rank))
    one.grad = torch.ones(3) if rank == 1 else None
    average_gradients([both, one, none], 2)
    torch.save([both.grad, one.grad, none.grad, list(own_batches("abcde"))], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.recipe
def test_gradients_are_means_and_batches_are_dealt_out(tmp_path):
    torch.multiprocessing.spawn(_average, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for got in (first, second):
        assert got[0].tolist() == [0.5] * 3 and got[1].tolist() == [0.5] * 3 and got[2] is None
    assert first[3] == [("a", 2), ("c", 2), ("e", 1)] and second[3] == [("b", 2), ("d", 2), (None, 1)]
