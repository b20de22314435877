"""``recbole-tokenrec run``: the table, the result file's shape, and mistakes without tracebacks."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recbole_tokenrec import pipeline
from recbole_tokenrec.cli import run
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.training.losses import fast_bf16

ROOT = Path(__file__).resolve().parents[2]
FAST = [
    "--cf_embedding_size=16", "--cf_epochs=6", "--cf_train_batch_size=16", "--mq_codebook_size=16",
    "--mq_num_codebooks=3", "--mq_user_num_codebooks=3", "--mq_hidden_size=32", "--mq_min_steps=20", "--mq_epochs=2",
    "--llm_epochs=2", "--llm_eval_step=1", "--show_progress=false",
]  # fmt: skip
METRICS = [f"{name}@{k}" for name in ("hit", "ndcg") for k in (10, 20, 30)]


@pytest.mark.recipe
def test_result_file_is_named_by_the_seed_that_counts(toy_data, tmp_path, capsys):
    (tmp_path / "seven.yaml").write_text("seed: 7\n")
    where = ["--data_path", str(toy_data), "--output_dir", str(tmp_path / "out"), "--show_progress=false"]
    for more, seed in (([], 7), (["--seed", "8"], 8)):
        assert main(["run", "--model", "Pop", "--dataset", "toy", "--config_files", "seven.yaml", *where, *more]) == 0
        assert json.loads((tmp_path / "out" / f"toy-Pop-{seed}.json").read_text())["seed"] == seed
    capsys.readouterr()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "arguments", "name"),
    [
        ("", [], "ml-100k-TokenRec-2020.json"),
        ("", ["--preset", "tuned"], "ml-100k-TokenRec-2020.json"),
        ("", ["--preset", "paper", "--seed", "4"], "ml-100k-TokenRec-paper-4.json"),
        ("preset: user_id_only", [], "ml-100k-TokenRec-user_id_only-2020.json"),
        ("preset: user_id_only", ["--preset", "tuned"], "ml-100k-TokenRec-2020.json"),
    ],
)
def test_result_files_of_two_presets_do_not_overwrite_each_other(text, arguments, name, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(text)
    given = {}
    monkeypatch.setattr(run, "run_models", lambda *_, result_file: given.update(file=result_file) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["run", "--output_dir", str(tmp_path), "--config_files", str(tmp_path / "mine.yaml"), *arguments])
    assert given["file"] == tmp_path / name


@pytest.mark.unit
def test_a_file_names_data_set_models_and_folders(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(
        "dataset: lastfm\nmodel: BPR,Pop\ncheckpoint_dir: mine\nstate: INFO\ndistributed_timeout: 7\nuse_gpu: false\n"
    )
    given = {}

    @contextlib.contextmanager
    def group(*settings):
        given.update(group=settings)
        yield

    monkeypatch.setattr(run, "process_group", group)
    monkeypatch.setattr(run, "run_models", lambda *all, result_file: given.update(all=all, file=result_file) or 1 / 0)
    for more, overrides in (([], {}), (["--checkpoint_dir=x", "--dataset", "lastfm"], {"checkpoint_dir": "x"})):
        with pytest.raises(ZeroDivisionError):
            main(["run", "--config_files", "mine.yaml", *more])
        assert given["all"][:2] == (["BPR", "Pop"], "lastfm") and given["all"][3] == overrides
        assert given["file"] == Path("output/lastfm-BPR-Pop-2020.json") and given["group"] == (7, False)
    with pytest.raises(ZeroDivisionError):
        main(["run"])
    assert given["all"][:2] == (["TokenRec"], "ml-100k")
    assert given["all"][3] == {"checkpoint_dir": "output", "state": "WARNING"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("content", "arguments", "text"),
    [
        ("dataset: lastfm", ["run", "--dataset", "beauty"], "dataset: the command line says 'beauty', the config"),
        ("model: BPR", ["run", "--model", "Pop"], "model: the command line says 'Pop', the configuration files 'BPR'"),
        ("dataset: 3", ["run"], "dataset: 3 is not allowed; allowed: a text"),
        ("dataset: lastfm", ["experiment", "overall", "--dataset", "beauty"], "dataset: the command line says"),
        ("model: BPR", ["experiment", "overall"], "model: 'BPR' was set, but the rows of an experiment have models"),
        ("model: BPR", ["experiment", "tune", "--model", "Pop"], "model: the command line says 'Pop'"),
        ("datasets: {ml-100k: {epochs: 1}}", ["run", "--model", "BPR"], "unknown configuration key 'datasets'"),
        ("world_size: 2", ["run", "--model", "BPR"], "unknown configuration key 'world_size'"),
    ],
)
def test_files_that_contradict_the_command_line(content, arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recbole_tokenrec.experiments.report.need_matplotlib", lambda: None)  # nothing is drawn
    (tmp_path / "mine.yaml").write_text(content)
    assert main([*arguments, "--config_files", "mine.yaml"]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.recipe
def test_table_and_result_file(toy_data, tmp_path, capsys):
    file = tmp_path / "r.json"
    code = main(
        ["run", "--model", "EASE,LightGCN,TokenRec", "--dataset", "toy", "--data_path", str(toy_data)]
        + ["--seed", "3", "--result_file", str(file), "--epochs=3", *FAST]
    )
    assert code == 0
    printed = capsys.readouterr().out
    for text in ("TokenRec (tuned)", "its collaborative stage, dot", "LightGCN", "EASE", "ndcg@20", "48 users"):
        assert text in printed
    result = json.loads(file.read_text())
    assert {"dataset", "seed", "versions", "models"} == set(result)
    assert result["seed"] == 3 and result["dataset"]["users"] == 48 and len(result["dataset"]["fingerprint"]) == 16
    assert {"torch", "recbole", "recbole-tokenrec"} <= set(result["versions"])
    assert [row["name"] for row in result["models"]] == ["EASE", "LightGCN", "TokenRec"]
    resolved = "bf16" if fast_bf16(torch.device("cpu")) else "fp32"
    for row in result["models"]:
        assert list(row["valid"]) == list(row["test"]) == METRICS
        assert {"config", "seconds", "peak_rss_mb", "checkpoint"} <= set(row)
        assert row["machine"]["threads"] == torch.get_num_threads() and row["machine"]["device"] == "cpu"
        assert row["machine"]["cpu"] and row["machine"]["memory_gib"] > 0
        assert row.get("precision") == (resolved if row["name"] == "TokenRec" else None)
    row = result["models"][-1]
    assert row["preset"] == "tuned" and row["config"]["mq_codebook_size"] == 16
    for score in ("dot", "cosine"):
        assert list(row["collaborative"][score]["test"]) == METRICS
    assert {"cf", "tokenizer", "llm", "evaluation"} <= set(row["seconds"])
    assert {"explained_variance", "unique_share", "codebook_use"} <= set(row["codes"]["user"])
    assert row["backbone"]["source"] == "scratch" and Path(row["checkpoint"]).is_file()


@pytest.mark.recipe
@pytest.mark.parametrize("model", ["SASRec", "LightGCNSoftmax", "GTN", "Pop"])
def test_models_of_every_kind_run(model, toy_data, capsys):
    arguments = ["run", "--model", model, "--dataset", "toy", "--data_path", str(toy_data), "--show_progress=false"]
    assert main([*arguments, "--epochs=1"]) == 0
    assert model in capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mq_num_codebook=3"], "unknown configuration key 'mq_num_codebook'; did you mean 'mq_num_codebooks'?"),
        (["--mq_masking_ratio=2"], "mq_masking_ratio: 2 is not allowed; allowed: float in [0, 1]"),
        (["--dataset", "nowhere"], "does not exist"),
        (["--model", "TokenRek"], "TokenRec"),
        (["--model", ","], "at least one name"),
        (["--model", "Pop,EASE", "--preset", "paper"], "preset: 'paper' was set, but Pop, EASE has no presets"),
        (["--preset", "best"], "allowed: paper, tuned, user_id_only"),
        (["--llm_backbone=t5-scratch-giant"], "from-scratch preset: t5-scratch-mini"),
        (["--config_files", "missing.yaml"], "missing.yaml cannot be read"),
        (["surplus"], "settings are given as --key=value"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, text, capsys):
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert text in captured.err and "Traceback" not in captured.err
    assert captured.err.startswith("error: ")


@pytest.mark.unit
def test_a_backbone_that_is_not_there_stops_before_others_are_trained(tmp_path, monkeypatch, capsys):
    from recbole_tokenrec.experiments import runs

    monkeypatch.setattr("recbole_tokenrec.experiments.report.need_matplotlib", lambda: None)  # nothing is drawn
    for module in (pipeline, runs):
        monkeypatch.setattr(module, "run_model", lambda config: pytest.fail("trained"))
    (tmp_path / "empty").mkdir()
    for name, text in (("nofolder", "is neither an existing folder nor"), ("empty", "holds no weights")):
        assert main(["run", "--model", "SASRecCE,TokenRec", f"--llm_backbone={name}"]) == 2
        assert f"'{name}' {text}" in capsys.readouterr().err
        assert main(["experiment", "overall", "--rows", "BPR;P5-RID", f"--llm_backbone={name}"]) == 2
        assert f"'{name}' {text}" in capsys.readouterr().err


@pytest.mark.recipe
def test_script_in_the_checkout_is_the_same_command(tmp_path):
    command = [sys.executable, str(ROOT / "run_recbole_tokenrec.py"), "--seeed=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'seed'" in done.stderr and "Traceback" not in done.stderr


def test_a_model_of_recboles_that_dies_in_training_costs_no_other_its_row(toy_data, tmp_path, capsys):
    arguments = ["--dataset", "toy", "--data_path", str(toy_data), "--epochs=1", "--show_progress=false"]
    assert main(["run", "--model", "Pop,FM", *arguments]) == 2  # FM wants ratings
    printed = capsys.readouterr().err
    assert "error: model 'FM': RecBole cannot train it on these data and settings (KeyError: 'label')" in printed
    assert "Traceback" not in printed
    rows = json.loads((tmp_path / "output" / "toy-Pop-FM-2020.json").read_text())["models"]
    assert [row["name"] for row in rows] == ["Pop"]
