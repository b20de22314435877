"""The documents say what the code does: generated pages are current, README's commands and snippets run."""

import re
import shlex
from pathlib import Path

import pytest

from recbole_tokenrec.cli.reference import reference

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.unit
def test_configuration_page_is_current():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference()


@pytest.mark.unit
def test_files_that_the_readme_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


@pytest.mark.unit
def test_every_command_in_the_readme_is_understood():
    """Each ``recbole-tokenrec`` or script line parses, its keys are known and its models exist."""
    import argparse

    from recbole_tokenrec.cli import run
    from recbole_tokenrec.configuration import known_keys, known_models

    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers(dest="command"))
    commands = 0
    for line in "\n".join(blocks("bash")).replace("\\\n", " ").splitlines():
        line = line.split("&&")[-1].strip()
        for prefix in ("python run_recbole_tokenrec.py", "recbole-tokenrec run"):
            if line.startswith(prefix):
                arguments, rest = parser.parse_known_args(["run", *shlex.split(line[len(prefix) :], comments=True)])
                overrides = run.overrides_of(arguments, rest)
                models = arguments.model.split(",")
                assert set(models) <= set(known_models())
                assert set(overrides) <= set().union(*(known_keys(model) for model in models))
                commands += 1
    assert commands >= 4


@pytest.mark.recipe
def test_python_snippets_run(tmp_path):
    """Every Python block of the README, in order, in one namespace, on ml-100k with the epochs cut down."""
    quick = {"cf_epochs": 2, "mq_min_steps": 20, "mq_epochs": 1, "llm_epochs": 1, "show_progress": False}
    namespace = {}
    found = blocks("python")
    assert found
    for code in found:
        code = code.replace("config_dict={", f"config_dict={{**{quick!r}, ")
        exec(compile(code, "README.md", "exec"), namespace)  # noqa: S102
