"""``recommend``, ``tokens``, ``export`` and ``doctor``: what they print and write, and mistakes without tracebacks."""

import configparser
import csv
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from recbole_tokenrec.cli import doctor
from recbole_tokenrec.cli.common import read_list
from recbole_tokenrec.cli.main import main


@pytest.fixture
def command(trained, capsys):
    """``command(name, *arguments)``: exit code, stdout, stderr; with the toy checkpoint."""

    def run(name, *arguments, checkpoint=None):
        code = main([name, "--checkpoint", str(checkpoint or trained()), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


@pytest.mark.recipe
def test_recommend_in_every_format(command, recommender, tmp_path):
    expected = recommender.recommend(["g2u5", "nobody"], k=3)
    (tmp_path / "users.txt").write_text("g2u5\n\nnobody\n")
    for arguments in (["--users", "g2u5,nobody"], ["--users_file", tmp_path / "users.txt"]):
        code, out, _ = command("recommend", *arguments, "--k", 3, "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(out)))
        assert code == 0 and [row["item_id"] for row in rows] == expected["item_id"].tolist()
        assert rows[0]["title"] == recommender.title(rows[0]["item_id"]) and rows[3]["kind"] == "cold"
    written = ["--format", "json", "--output", tmp_path / "o.json"]
    code, out, _ = command("recommend", "--users", "g2u5", "--k", 3, *written)
    rows = json.loads((tmp_path / "o.json").read_text())
    assert (code, out) == (0, "") and [row["rank"] for row in rows] == [1, 2, 3]
    code, out, err = command("recommend", "--history", "g3i1,g3i2,what")
    assert code == 0 and "warm" in out and "note: the model does not know these items" in err and "what" in err
    code, out, _ = command("recommend", "--format", "csv", "--k", 1)
    assert len(pd.read_csv(io.StringIO(out))) == 48


@pytest.mark.recipe
def test_recommend_among_candidates(command, tmp_path):
    (tmp_path / "items.txt").write_text("g1i1\ng1i2\n")
    code, out, _ = command(
        "recommend", "--users", "g1u1", "--include_seen", "--format", "csv", "--candidates_file", tmp_path / "items.txt"
    )
    assert code == 0 and sorted(pd.read_csv(io.StringIO(out))["item_id"]) == ["g1i1", "g1i2"]


@pytest.mark.recipe
def test_tokens_and_export(command, recommender, tmp_path):
    code, out, _ = command("tokens", "--output_dir", tmp_path / "tokens")
    assert code == 0 and "48 items, 3 codebooks of 16" in out
    table = pd.read_csv(tmp_path / "tokens" / "tokens.csv")
    assert table["tokens"].tolist() == recommender.tokens()["tokens"].tolist()
    assert set(json.loads((tmp_path / "tokens" / "tokens.json").read_text())) == {"user", "item"}
    assert "plotly" in (tmp_path / "tokens" / "codebooks.html").read_text()

    code, out, _ = command("export", "--to", tmp_path / "export")
    assert code == 0 and "model.safetensors" in out
    code, out, _ = command("recommend", "--users", "g2u5", "--format", "csv", checkpoint=tmp_path / "export")
    assert code == 0
    assert pd.read_csv(io.StringIO(out))["item_id"].tolist() == recommender.recommend("g2u5")["item_id"].tolist()


@pytest.mark.unit
def test_doctor_names_versions_patches_and_data(toy_data, capsys):
    import torch

    assert main(["doctor", "--data_path", str(toy_data)]) == 0
    out = capsys.readouterr().out
    for text in (f"torch {torch.__version__}", "checkpoints: torch.load refuses", "issues/2212", "t5-scratch-mini"):
        assert text in out
    assert "toy: 432 interactions (user_id:token, item_id:token, timestamp:float) in" in out
    assert "ml-100k: 100000 interactions" in out


@pytest.mark.unit
@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_doctor_says_what_precision_auto_is(fast, precision, monkeypatch, capsys):
    monkeypatch.setattr("recbole_tokenrec.training.losses.fast_bf16", lambda device: fast)
    assert main(["doctor"]) == 0
    assert f"precision: auto is {precision} on the CPU" in capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["recommend", "--checkpoint", "missing.pth"], "missing.pth: no such file"),
        (["recommend", "--checkpoint", "x", "--users", "a", "--history", "b"], "--users and --history exclude"),
        (["recommend", "--checkpoint", "x", "--users", ","], "--users: at least one id is needed"),
        (["recommend", "--checkpoint", "x", "--users_file", "no.txt"], "no.txt cannot be read"),
        (["recommend", "--checkpoint", "x", "--kk=3"], "'--kk=3' is not understood"),
        (["recommend", "--checkpoint", "x", "--index", "annoy"], "allowed: exact, faiss"),
        (["tokens", "--checkpoint", "x", "--neighbours", "0"], "--neighbours: 0 is not allowed"),
        (["export", "--checkpoint", "missing", "--to", "y"], "missing: no such file"),
        (["serve", "--checkpoint", "x", "--port", "70000"], "--port: 70000 is not allowed"),
        (["serve", "--checkpoint", "x", "--threads", "0"], "--threads: 0 is not allowed"),
    ],
)
def test_mistakes(arguments, text, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and text in captured.err and "Traceback" not in captured.err


@pytest.mark.unit
def test_serve_without_its_extra_is_said(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "recbole_tokenrec.serving.app", raising=False)
    assert main(["serve", "--checkpoint", "x"]) == 2
    assert "pip install 'recbole-tokenrec[serve]'" in capsys.readouterr().err


@pytest.mark.recipe
@pytest.mark.parametrize("name", ["tokens", "export"])
def test_models_without_tokens_are_refused_before_their_data_are_looked_for(name, command, trained, tmp_path):
    more = ["--to", tmp_path / "to"] if name == "export" else ["--output_dir", tmp_path / "to"]
    code, _, error = command(name, *more, checkpoint=trained("BPR"))
    assert code == 2 and "no checkpoint of TokenRec's" in error and not (tmp_path / "to").exists()


@pytest.mark.unit
def test_doctor_knows_every_extra():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    texts = {name: text for name, text in setup["options.extras_require"].items() if name != "test"}
    assert {name: re.findall(r"^[\w-]+", text, re.MULTILINE) for name, text in texts.items()} == doctor.EXTRAS


@pytest.mark.unit
def test_lists_that_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "users.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_list(tmp_path / "users.txt") == ["a", "b"]
