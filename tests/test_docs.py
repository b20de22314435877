"""The documents say what the code does: generated pages are current, README's commands and snippets run."""

import argparse
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from recbole_tokenrec.cli import artefacts, doctor, experiment, recommend, run, serve
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.cli.reference import reference
from recbole_tokenrec.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


# Run in this order in one folder: later pages use what quickstart trains.
GUIDES = ("quickstart", "your-data", "serving", "faq", "reproducing")
QUICK = {
    "cf_epochs": 2, "mq_min_steps": 20, "mq_epochs": 1, "llm_epochs": 1, "show_progress": False, "stage_cache": False,
    "mq_user_num_codebooks": 3, "mq_codebook_size": 32, "mq_hidden_size": 32,
}  # fmt: skip


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
    from recbole_tokenrec.configuration import known_keys, known_models

    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers(dest="command"))
    commands = 0
    Path("my.yaml").touch()
    for line in "\n".join(blocks("bash")).replace("\\\n", " ").splitlines():
        line = line.split("&&")[-1].strip()
        for prefix in ("python run_recbole_tokenrec.py", "recbole-tokenrec run"):
            if line.startswith(prefix):
                arguments, rest = parser.parse_known_args(["run", *shlex.split(line[len(prefix) :], comments=True)])
                overrides = run.overrides_of(arguments, rest)
                models = (arguments.model or "TokenRec").split(",")
                assert set(models) <= set(known_models())
                assert set(overrides) <= set().union(*(known_keys(model) for model in models))
                commands += 1
    assert commands >= 4


@pytest.mark.recipe
def test_python_snippets_run(tmp_path):
    """Every Python block of the README, in order, in one namespace, on ml-100k with the epochs cut down."""
    quick = {key: value for key, value in QUICK.items() if key != "stage_cache"}
    namespace = {}
    found = blocks("python")
    assert found
    for code in found:
        code = code.replace("config_dict={", f"config_dict={{**{quick!r}, ")
        exec(compile(code, "README.md", "exec"), namespace)  # noqa: S102


@pytest.mark.unit
def test_the_reference_names_the_keys_of_every_model_and_run():
    text = reference()
    for key in ("user_first_interactions", "distributed_timeout", "MAX_ITEM_LIST_LENGTH", "sampled_items", "num_beams"):
        assert f"\n| `{key}` | " in text
    for name in MODELS:
        assert f"\n## {name}\n" in text


@pytest.mark.unit
@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_files_that_the_pages_link_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.recipe
def test_guides_run_from_top_to_bottom(capsys):
    """Every snippet and command of the guides, but: epochs are cut down, pip does not run, ``serve`` and what trains
    for hours (``DIR``, ``experiment``) is parsed only, and LanceDB's snippet waits for its extra."""
    for module in ("faiss", "fastapi"):
        pytest.importorskip(module)
    with_lancedb = importlib.util.find_spec("lancedb") is not None
    for guide in GUIDES:
        text = (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")
        namespace = {}
        found = re.findall(r"```(bash|python)\n(.*?)```", text, flags=re.DOTALL)
        assert found, guide
        for language, code in found:
            if language == "python" and (with_lancedb or '"lancedb"' not in code):
                exec(compile(code, f"{guide}.md", "exec"), namespace)  # noqa: S102
            for line in code.strip().splitlines() if language == "bash" else []:
                words = shlex.split(line, comments=True)
                if words and words[0] != "pip":
                    assert words[0] == "recbole-tokenrec", line
                    _command(words[1:])
    assert "kind" in capsys.readouterr().out


def _command(words):
    """Run what is quick; of the rest see that it is understood."""
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command", required=True)
    for module in (run, experiment, recommend, artefacts, serve, doctor):
        module.add_parser(subparsers)
    arguments, rest = parser.parse_known_args(words)
    if arguments.command in ("run", "experiment"):
        from recbole_tokenrec.configuration import known_keys

        models = (getattr(arguments, "model", None) or "TokenRec").split(",")
        assert set(run.overrides_of(arguments, rest)) <= set().union(*(known_keys(model) for model in models)), words
    else:
        assert not rest, words
    if arguments.command in ("experiment", "serve") or "DIR" in words:
        return
    if arguments.command == "run" and arguments.model in (None, "TokenRec"):
        words = words + [f"--{key}={value}" for key, value in QUICK.items()]
    assert main(words + (["--show_progress=false"] if arguments.command == "run" else [])) == 0, words


@pytest.mark.unit
def test_figures_of_the_scaling_page_are_of_todays_preset():
    from recbole_tokenrec.configuration import make_config
    from recbole_tokenrec.settings import read_settings
    from recbole_tokenrec.tokenizers.mq import _MOST_DISTANCES

    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    tuned = read_settings(make_config("TokenRec", "some-shop", (), {"state": "ERROR"}))
    users, items, size = tuned.mq_user_num_codebooks, tuned.mq_num_codebooks, tuned.mq_codebook_size
    assert f"({users} + {items}) · {size} = {(users + items) * size:,} rows" in page
    hidden, dim = tuned.mq_hidden_size, 2 * tuned.cf_embedding_size
    codes = hidden * dim + 2 * hidden**2 + hidden * size + dim * size
    assert f"{users * codes / 1e6:.1f} million for a user, {items * codes / 1e6:.1f} million for an item" in page
    power = str(_MOST_DISTANCES.bit_length() - 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    assert f"2{power} distances" in page
    assert tuned.cf_sampled_items == tuned.llm_sampled_items and f"{tuned.llm_sampled_items:,} items" in page


@pytest.mark.unit
@pytest.mark.parametrize("file", [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("docs/results/**/*.json"))])
def test_result_files_are_json_that_any_reader_takes(file):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((ROOT / file).read_text(encoding="utf-8"), parse_constant=refuse)
