"""Files are written whole or not at all, and only what is the file's fault is said of the file."""

import json
import math

import pytest

from recbole_tokenrec.errors import OutputError
from recbole_tokenrec.files import written_whole
from recbole_tokenrec.pipeline import write_json

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file"), OutputError),
        (OSError(28, "No space left on device"), OutputError),
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), RuntimeError),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file_and_want_of_memory_keeps_its_name(problem, kind, tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises((OutputError, MemoryError, RuntimeError)) as raised, written_whole(tmp_path / "x") as file:
        file.write(b"new")
        raise problem
    assert raised.type is kind and [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_result_files_say_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "r.json", {"sd": [math.nan, 0.5], "ratio": {"p": -math.inf, "n": 3, "name": "nan"}})
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert content == {"sd": [None, 0.5], "ratio": {"p": None, "n": 3, "name": "nan"}}
