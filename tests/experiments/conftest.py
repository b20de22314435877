"""The command ``experiment`` on the toy data."""

import json

import pytest

from recbole_tokenrec.cli.main import main


@pytest.fixture
def experiment(toy_data, tmp_path):
    """``experiment(name, *arguments)``: exit code, and the result file's content."""

    def call(name, *arguments, seeds=1, folder=""):
        code = main(
            ["experiment", name, "--dataset", "toy", "--data_path", str(toy_data), "--output_dir", str(tmp_path)]
            + ["--seeds", str(seeds), *arguments]
        )
        where = tmp_path / "experiments" / name / "toy" / folder
        file = where / "result.json"
        return code, json.loads(file.read_text()) if file.is_file() else None, where

    return call
