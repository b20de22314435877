"""The wheel: holds every YAML, and runs in an empty folder without the checkout."""

import configparser
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list(folder.glob("*.tar.gz"))
    return next(folder.glob("*.whl"))


@pytest.mark.recipe
def test_wheel_holds_every_property_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path.relative_to(ROOT) for path in (ROOT / "properties").rglob("*") if path.suffix in (".yaml", ".json")]
    assert len(files) > 10
    for file in files:
        assert f"recbole_tokenrec/{file.as_posix()}" in names
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_tokenrec").rglob("*.py")]
    assert set(modules) <= names


@pytest.mark.recipe
def test_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    """Installed into a folder of its own that comes first on the path; the dependencies are this environment's."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import recbole_tokenrec, pathlib; from recbole_tokenrec.cli.main import main; "
        "from recbole_tokenrec.paths import properties_dir; "
        f"assert str(properties_dir()).startswith({str(target)!r}), properties_dir(); "
        "raise SystemExit(main(['run', '--model', 'TokenRec', '--llm_epochs=0']))"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "llm_epochs: 0 is not allowed" in done.stderr, done.stderr[-2000:]


@pytest.mark.unit
def test_what_recbole_needs_is_asked_for_where_pip_cannot_install_it_whole():
    """From Python 3.12 on the ray that RecBole asks for has no wheel: there it is installed without dependencies."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    ours = [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line.strip()]
    for python, recbole in (("3.11", True), ("3.12", False), ("3.14", False)):
        asked = {
            one.name: one for one in ours if one.marker is None or one.marker.evaluate({"python_version": python})
        }
        assert ("recbole" in asked) == recbole
    wanted = [Requirement(line) for line in metadata.requires("recbole")]
    wanted = [one for one in wanted if one.name != "ray" and not (one.marker and "extra" in str(one.marker))]
    assert len(wanted) > 10
    least = {one.name: min(Version(part.version) for part in one.specifier) for one in asked.values()}
    for one in wanted:
        assert least[one.name] >= min(Version(part.version) for part in one.specifier), one


@pytest.mark.unit
def test_without_recbole_the_import_says_how_to_install_it():
    code = "from importlib import util; util.find_spec = lambda name: None; import recbole_tokenrec"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "pip install --no-deps recbole==1.2.1" in last, done.stderr[-2000:]
    code = f"import sys; sys.argv[0] = '/somewhere/bin/recbole-tokenrec'; {code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
