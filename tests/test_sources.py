"""The digest of the code: what runs changes it, what people read does not, and names of results hold it."""

import shutil
from pathlib import Path

import pytest

import recbole_tokenrec
from recbole_tokenrec.pipeline import identity_of, versions
from recbole_tokenrec.sources import MAKING_NUMBERS, code_digest

pytestmark = pytest.mark.unit
ROOT = Path(recbole_tokenrec.__file__).parent


@pytest.fixture
def copy(tmp_path):
    for name in MAKING_NUMBERS:
        if name.endswith(".py"):
            shutil.copy(ROOT / name, tmp_path / name)
        else:
            shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_only_what_runs_counts(copy):
    before = code_digest(copy)
    assert before == code_digest() and len(before) == 12
    code_digest.cache_clear()
    file = copy / "tokenizers" / "mq.py"
    change(file, '"""Masked Vector-Quantized', '"""  Another docstring. Masked Vector-Quantized')
    change(file, "import math\n", "import math  # a comment\n\n")
    assert code_digest(copy) == before
    code_digest.cache_clear()
    change(file, "max_iter=20", "max_iter=21")
    changed = code_digest(copy)
    assert changed != before
    code_digest.cache_clear()
    change(copy / "training" / "steps.py", "LLM_STEPS, LLM_EPOCHS = 2", "LLM_STEPS, LLM_EPOCHS = 1")
    assert code_digest(copy) != changed
    code_digest.cache_clear()


def test_names_of_trainings_hold_it(monkeypatch):
    assert versions()["code"] == code_digest()
    from recbole_tokenrec.configuration import make_config

    config = make_config("Pop", "ml-100k", (), {"state": "ERROR"})
    names = [identity_of(config)]
    monkeypatch.setattr("recbole_tokenrec.pipeline.code_digest", lambda: "another")
    assert identity_of(config) not in names


def test_a_package_without_sources_has_a_digest_all_the_same(tmp_path):
    assert len(code_digest(tmp_path)) == 12
