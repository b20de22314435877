"""A sweep in two processes: every combination once, one collaborative stage, and a killed worker costs nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from benchmarks.harness import workers_of
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.errors import BackboneError, ConfigError, DataError, OutputError, TrainingError
from recbole_tokenrec.files import exclusive
from recbole_tokenrec.sweep import check_space, grid

pytest.importorskip("optuna")

SMALL = [
    "--cf_embedding_size=16", "--cf_epochs=4", "--cf_train_batch_size=16", "--mq_user_num_codebooks=2",
    "--mq_codeword_dim=8", "--mq_hidden_size=16", "--mq_epochs=1", "--mq_min_steps=6", "--mq_train_batch_size=16",
    "--llm_epochs=3", "--llm_eval_step=1", "--llm_train_batch_size=16", "--checkpoint_every_seconds=0",
    "--use_gpu=false", "--topk=[5]", "--valid_metric=NDCG@5",
]  # fmt: skip


def in_a_trial(pid: int, folder) -> bool:
    """Whether a worker is in a trial that has no result yet. For a moment it may have the lock of another's open."""
    seen = open_locks(pid, folder)
    time.sleep(0.3)
    return bool(seen & open_locks(pid, folder))


def open_locks(pid: int, folder) -> set[Path]:
    """Locks of trials without a result that a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found.add(Path(os.readlink(descriptor)))
    locks = (name for name in found if name.parent == folder and name.match("trial-*.lock"))
    return {name for name in locks if not name.with_suffix(".json").exists()}


@pytest.mark.recipe
def test_eight_trials_share_a_stage_and_survive_a_kill(toy_data, tiny_t5, tmp_path):
    (tmp_path / "space.yaml").write_text("mq_num_codebooks: [1, 2]\nmq_codebook_size: [4, 8, 16, 32]\n")
    process = subprocess.Popen(
        [
            sys.executable, "-m", "recbole_tokenrec.cli.main", "sweep", "--space", "space.yaml", "--workers", "2",
            "--dataset", "toy", "--data_path", str(toy_data), f"--llm_backbone={tiny_t5}", "--output_dir", "out",
            *SMALL,
        ],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    folder = tmp_path / "out" / "sweeps" / "TokenRec-toy"
    deadline = time.time() + 500
    while time.time() < deadline and len(list(folder.glob("trial-*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    while not in_a_trial(workers[0], folder):
        assert process.poll() is None and time.time() < deadline
    os.kill(workers[0], signal.SIGKILL)
    printed, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    result = json.loads((folder / "sweep.json").read_text())
    keys = [(trial["keys"]["mq_num_codebooks"], trial["keys"]["mq_codebook_size"]) for trial in result["trials"]]
    assert sorted(keys) == [(k, size) for k in (1, 2) for size in (4, 8, 16, 32)]
    values = [trial["value"] for trial in result["trials"]]
    assert values == sorted(values, reverse=True) and all(
        trial["value"] == trial["valid"]["ndcg@5"] for trial in result["trials"]
    )
    assert len(list((tmp_path / "out" / "stage_cache").glob("cf-*.pt"))) == 1
    assert sum("cf" not in trial["cached"] for trial in result["trials"]) <= 1
    assert sum(trial.get("deaths", 0) for trial in result["trials"]) == 1
    assert "stages from the cache" in printed


@pytest.mark.unit
def test_grid_is_every_combination_of_lists():
    assert grid({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert grid({"a": [1], "b": {"low": 1, "high": 2}}) is None


@pytest.mark.unit
@pytest.mark.parametrize(
    "space",
    [
        None, [], {}, {"a": []}, {"a": [[1]]}, {"a": 3}, {"a": {"low": 1}}, {"a": {"low": 2, "high": 1}},
        {"a": {"l": 1}},
        # what Optuna would die of in a worker
        {"a": {"low": 0.0, "high": 0.5, "log": True}}, {"a": {"low": 1, "high": 9, "log": True, "step": 2}},
        {"a": {"low": 1, "high": 9, "step": 0}}, {"a": {"low": 1, "high": 9, "step": 0.5}},
        {"a": {"low": 1, "high": 9, "log": "yes"}}, {"a": {"low": 1.0, "high": 9.0, "step": "2"}},
    ],
)  # fmt: skip
def test_wrong_spaces(space):
    with pytest.raises(ConfigError, match="space: "):
        check_space(space)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("space", "arguments", "text"),
    [
        ("mq_num_codebook: [1]", [], "unknown configuration key 'mq_num_codebook'; did you mean 'mq_num_codebooks'?"),
        ("mq_num_codebooks: [1, 99, 2]", [], "mq_num_codebooks: 99 is not allowed; allowed: int in [1, 64]"),
        ("mq_num_codebooks: [1]", ["--trials", "0"], "--trials: 0 is not allowed; allowed: int in [1, inf)"),
        ("mq_num_codebooks: [1]", ["--name", "../x"], "--name: '../x' is not allowed; allowed: a name, without a path"),
        ("mq_num_codebooks: [1]", ["--name", ".."], "--name: '..' is not allowed"),
        ("mq_num_codebooks: [1]", ["--workers", "-1"], "--workers: -1 is not allowed"),
        ("mq_num_codebooks: [1]", ["--storage", "nosql://x"], "storage: nosql://x cannot be used"),
        ("mq_num_codebooks: [1]", ["--output_dir", "/proc/x"], "the folder /proc/x/sweeps/TokenRec-ml-100k cannot be"),
    ],
)
def test_mistakes(space, arguments, text, tmp_path, capsys):
    (tmp_path / "space.yaml").write_text(space)
    assert main(["sweep", "--space", "space.yaml", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.unit
def test_a_sweep_of_other_settings_needs_another_name(tmp_path, monkeypatch, capsys):
    """Its trials would stand in one table with trainings that they cannot be compared with."""
    import recbole_tokenrec.sweep as module

    monkeypatch.setattr(module, "_to_do", lambda *a: 0)
    (tmp_path / "space.yaml").write_text("mq_num_codebooks: [1, 2]")
    command = ["sweep", "--space", "space.yaml", "--output_dir", "out"]
    assert main(command) == 0 and main([*command, "--trials", "1"]) == 0
    for more, what in ((["--llm_epochs=3"], "keys"), (["--dataset", "toy", "--name", "TokenRec-ml-100k"], "dataset")):
        assert main([*command, *more]) == 2
        assert f"'TokenRec-ml-100k' was begun with other {what}; give another --name" in capsys.readouterr().err
    (tmp_path / "space.yaml").write_text("mq_num_codebooks: [1, 2, 3]")
    assert main(command) == 2 and "other space" in capsys.readouterr().err


@pytest.mark.unit
def test_trials_of_the_dead_are_put_in_line_again_with_all_their_values(tmp_path):
    """Also if the process died before it had noted any of them."""
    from optuna.trial import TrialState

    import recbole_tokenrec.sweep as module

    space = {"a": [1, 2], "b": [3, 4]}
    sweep = module.Sweep("BPR", "toy", space, 4, str(tmp_path), f"sqlite:///{tmp_path}/s.db", "x")
    study = module._study(sweep, "maximize")
    for values in grid(space):
        study.enqueue_trial(values)
    study.ask()
    module._put_dead_in_line(study, sweep)
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert sorted(tuple(t.system_attrs["fixed_params"].items()) for t in waiting) == [
        (("a", a), ("b", b)) for a in (1, 2) for b in (3, 4)
    ]
    assert [t.user_attrs for t in waiting if t.user_attrs] == [{"deaths": 1}]
    for _ in range(4 * (module.MOST_DEATHS + 1) - 1):
        study.ask()
        module._put_dead_in_line(study, sweep)
    assert not study.get_trials(states=(TrialState.WAITING, TrialState.RUNNING))  # each was given up
    deaths = [trial.user_attrs.get("deaths", 0) for trial in study.get_trials()]
    assert sorted(deaths) == sorted(4 * list(range(module.MOST_DEATHS + 1)))


@pytest.mark.unit
def test_who_finishes_while_the_dead_are_looked_for_is_not_one_of_them(tmp_path, monkeypatch):
    from optuna.trial import TrialState

    import recbole_tokenrec.sweep as module

    sweep = module.Sweep("BPR", "toy", {"a": [1]}, 1, str(tmp_path), f"sqlite:///{tmp_path}/s.db", "x")
    study = module._study(sweep, "maximize")
    study.enqueue_trial({"a": 1})
    trial, worker = study.ask(), module._study(sweep)

    def finished_by_now(path, wait):  # after the list of running trials was made
        worker.tell(trial.number, 0.5)
        return exclusive(path, wait)

    monkeypatch.setattr(module, "exclusive", finished_by_now)
    module._put_dead_in_line(study, sweep)
    assert [t.state for t in study.get_trials()] == [TrialState.COMPLETE]


@pytest.mark.unit
def test_a_full_disk_is_not_the_fault_of_a_trial_s_values(tmp_path, monkeypatch):
    from optuna.trial import TrialState

    import recbole_tokenrec.sweep as module

    sweep = module.Sweep("BPR", "toy", {"a": [1, 2, 3]}, 3, str(tmp_path), f"sqlite:///{tmp_path}/s.db", "x")
    study = module._study(sweep, "maximize")
    for error, state in (
        (OutputError("full"), TrialState.RUNNING), (DataError("not there"), TrialState.RUNNING),
        (TrainingError("nan"), TrialState.FAIL),
    ):  # fmt: skip
        monkeypatch.setattr(module, "run_models", Mock(side_effect=error))
        trial = module._next_trial(study, sweep)
        with contextlib.suppress(OutputError, DataError):
            module._run_trial(study, sweep, trial)
        assert study.trials[trial.number].state == state
    assert module._to_do(study, sweep) == 2  # the one that failed has had its turn


@pytest.mark.unit
def test_if_no_trial_works_that_is_an_error_and_all_are_tried_again(tmp_path, monkeypatch, capsys):
    import recbole_tokenrec.sweep as module

    def here(target, job, *_):
        target(job)

    monkeypatch.setattr(module, "run_workers", here)
    (tmp_path / "space.yaml").write_text("learning_rate: [0.1, 0.2]")
    command = ["sweep", "--space", "space.yaml", "--model", "BPR", "--output_dir", "out"]
    for _ in range(2):
        trainings = Mock(side_effect=BackboneError("llm_backbone: nowhere"))
        monkeypatch.setattr(module, "run_models", trainings)
        assert main(command) == 2 and trainings.call_count == 2
        text = "no trial of the sweep 'BPR-ml-100k' could be trained; the first failed: llm_backbone: nowhere"
        assert text in capsys.readouterr().err
    config = {"valid_metric": "NDCG@20"}
    row = {"valid": {"ndcg@20": 0.5}, "test": {}, "checkpoint": "x", "config": config}
    monkeypatch.setattr(module, "run_models", Mock(side_effect=[TrainingError("not finite"), {"models": [row]}]))
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "trial 4 failed: not finite" in printed and "0.5000" in printed and "nowhere" not in printed
    monkeypatch.setattr(module, "run_models", Mock(side_effect=AssertionError))
    assert main(command) == 0  # all have had their turn


@pytest.mark.unit
def test_no_password_is_shown(tmp_path, capsys):
    (tmp_path / "space.yaml").write_text("mq_num_codebooks: [1, 2]")
    storage = "nosql://me:s3cret@host:1/db"
    assert main(["sweep", "--space", "space.yaml", "--storage", storage]) == 2
    printed = capsys.readouterr().err
    assert "nosql://me:***@host:1/db" in printed and "s3cret" not in printed


@pytest.mark.unit
def test_a_lock_is_one_process_s(tmp_path):
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from recbole_tokenrec.files import exclusive\n"
        f"with exclusive({str(path)!r}) as held: print(held, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        with exclusive(path, wait=False) as held:
            assert not held
        process.kill()
    with exclusive(path, wait=False) as held:
        assert held
