"""Workers: a death is made good at once, a mistake is told, and nobody outlives the one who asked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_tokenrec.errors import DataError, TrainingError
from recbole_tokenrec.workers import run_workers

pytestmark = pytest.mark.slow  # each process imports torch; test_batch_scoring.py has a death and a mistake in CI


def die_once(folder):
    with open(Path(folder) / "starts", "a") as file:
        file.write(f"{os.getpid()}\n")
    if len((Path(folder) / "starts").read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def die(folder):
    os._exit(3)


def complain(folder):
    raise DataError("this file is no good")


def sleep(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def test_a_death_is_made_good(tmp_path):
    assert run_workers(die_once, str(tmp_path), 1, 3, "test") == 1
    assert len((tmp_path / "starts").read_text().split()) == 2


def test_too_many_deaths(tmp_path):
    with pytest.raises(TrainingError, match="test: 1 workers died, the last with exit code 3"):
        run_workers(die, str(tmp_path), 1, 0, "test")


def test_a_mistake_is_told_in_its_own_words(tmp_path, capfd):
    with pytest.raises(DataError, match="this file is no good"):
        run_workers(complain, str(tmp_path), 1, 3, "test")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells them on Linux")
def test_nobody_outlives_the_one_who_asked(tmp_path):
    code = (
        "import sys, test_workers; from recbole_tokenrec.workers import run_workers\n"
        "if __name__ == '__main__': run_workers(test_workers.sleep, sys.argv[1], 1, 3, 'test')"
    )
    script = tmp_path / "ask.py"
    script.write_text(code)
    tests = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    folder = tmp_path / "workers"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    deadline = time.time() + 120
    while not (started := list(folder.iterdir())):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    while Path(f"/proc/{started[0].name}").exists():  # gone, or left to be waited for by its new parent
        if "\nState:\tZ" in Path(f"/proc/{started[0].name}/status").read_text():
            break
        assert time.time() < deadline
        time.sleep(0.1)
