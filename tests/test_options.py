"""One check for the keys of every model: what is taken, what is refused, and in which words."""

import pytest
import yaml
from recbole.utils import get_model

from recbole_tokenrec import commonkeys
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.options import Option, check, check_options, reject_unknown
from recbole_tokenrec.paths import properties_dir
from recbole_tokenrec.registry import MODELS
from recbole_tokenrec.settings import OPTIONS

pytestmark = pytest.mark.unit
NOTHING = "key: a value is needed"


@pytest.mark.parametrize(
    ("option", "good", "bad", "allowed"),
    [
        (Option(int, low=1), [1, 7, 2.0], [0, 2.5, "3", True, float("inf")], "int in [1, inf)"),
        (Option(float, low=0, high=1, open_high=True), [0, 0.5], [1, -0.1, "0.1", False], "float in [0, 1)"),
        (Option(float, low=0, open_low=True), [1, 1e-9], [0, float("nan"), float("inf")], "float in (0, inf)"),
        (Option(float), [-1e9, 0], ["x"], "float"),
        (Option(str, choices=("a", "b")), ["a"], ["c", 1, ["a"]], "one of a, b"),
        (Option(str), ["x"], [3, ["x"]], "a text"),
        (Option(bool), [True, False], [0, 1, "yes"], "true or false"),
        (Option(dict), [{}], [3, []], "a mapping"),
        (Option(int, low=1, optional=True), [None, "", 4], [0, True, "x"], "int in [1, inf) or empty"),
        (Option(list, shares=True), [[0.1, 0.5], (0.2, 0.2)], [[0.5], [0.5, 0.1], [0.0, 0.5], ["a", 0.5], 0.5],
         "two shares [low, high] within (0, 1)"),
        (Option(list, choices=("a", "b")), ["a", ["a", "b"], ["a", "a"]], [[], 3], "one of a, b, or a list of them"),
        (Option(list, choices=("a", "b"), distinct=True), ["a", ["b", "a"]], [["a", "a"]],
         "one of a, b, or a list of them, each once"),
    ],
)  # fmt: skip
def test_an_option_takes_what_it_says(option, good, bad, allowed):
    for value in good:
        check("key", value, option)
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            check("key", value, option)
        assert str(caught.value).startswith(f"key: {value!r} is not allowed; allowed: {allowed}")
    if not option.optional:
        for value in (None, "", "None"):
            with pytest.raises(ConfigError, match=f"^{NOTHING}; allowed: "):
                check("key", value, option)


def test_values_come_in_their_own_type():
    config = {"whole": 4.0, "number": 1, "names": "a", "pair": (0.1, 0.2), "other": "kept"}
    options = {"whole": Option(int), "number": Option(float), "names": Option(list, choices=("a", "b"))}
    check_options(config, {**options, "pair": Option(list, shares=True)})
    assert config == {"whole": 4, "number": 1.0, "names": ["a"], "pair": [0.1, 0.2], "other": "kept"}
    assert isinstance(config["whole"], int) and isinstance(config["number"], float)


def test_a_mistyped_choice_or_key_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'next'"):
        check("targets", ["all", "nxt"], Option(list, choices=("all", "next")))
    with pytest.raises(ConfigError, match="key 'mq_num_codebook'; did you mean 'mq_num_codebooks'"):
        reject_unknown(["mq_num_codebook"], OPTIONS)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "TokenRec"])
def test_a_model_checks_every_key_that_its_yaml_gives_it(name):
    """Beyond those that RecBole gives every model."""
    keys = set(yaml.safe_load((properties_dir() / MODELS[name].yaml).read_text(encoding="utf-8")))
    elsewhere = {*commonkeys.OPTIONS, "grid", "datasets"}
    assert keys - elsewhere <= set(get_model(name).options)
