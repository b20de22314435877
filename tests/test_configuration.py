"""Configuration of one table: known keys, precedence, the same evaluation for every model."""

import pytest

from recbole_tokenrec import pipeline
from recbole_tokenrec.configuration import NO_MATTER, known_keys, make_config, parse_value
from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.registry import MODELS

pytestmark = pytest.mark.unit
QUIET = {"state": "ERROR"}


@pytest.mark.parametrize("model", ["TokenRec", "LightGCNSoftmax", "GTN", "LightGCN", "EASE", "BPR", "SASRec"])
def test_every_model_is_evaluated_alike(model):
    config = make_config(model, "ml-1m", (), QUIET)
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert config["eval_args"]["order"] == "TO" and config["eval_args"]["mode"]["test"] == "full"
    assert config["topk"] == [10, 20, 30] and config["valid_metric"] == "NDCG@20"
    assert config["item_inter_num_interval"] == "[5,inf)"


@pytest.mark.parametrize("model", ["TokenRec", "LightGCNSoftmax", "BPR"])
@pytest.mark.parametrize(
    "part",
    [
        {"mode": "uni100"},
        {"order": "RO"},
        {"split": {"RS": [0.7, 0.2, 0.1]}},
        {"mode": {"valid": "full", "test": "pop20"}},
    ],
)
def test_a_part_of_eval_args_leaves_the_rest(model, part, tmp_path):
    """RecBole fills in a random 80/10/10 split for what a user does not repeat."""
    file = tmp_path / "mine.yaml"
    file.write_text(f"eval_args: {part}\n")
    whole = make_config(model, "ml-100k", (), QUIET)["eval_args"]
    by_key = make_config(model, "ml-100k", (), {"eval_args": part, **QUIET})
    for chosen in (by_key, make_config(model, "ml-100k", [file], QUIET)):
        expected = {**whole, **part}
        if isinstance(part.get("mode"), str):
            expected["mode"] = {"valid": part["mode"], "test": part["mode"]}
        assert chosen["eval_args"] == expected


def test_parts_of_eval_args_in_several_places_add_up(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("eval_args: {order: RO}\n")
    second.write_text("eval_args: {group_by: user}\n")
    for model in ("TokenRec", "BPR"):
        chosen = make_config(model, "ml-100k", [first, second], {"eval_args": {"mode": "uni10"}, **QUIET})["eval_args"]
        assert chosen["order"] == "RO" and chosen["mode"] == {"valid": "uni10", "test": "uni10"}
        assert chosen["split"] == {"LS": "valid_and_test"}


def test_a_preset_in_a_file_is_tokenrecs_and_no_hindrance_to_the_others_of_a_table(tmp_path):
    file = tmp_path / "preset.yaml"
    file.write_text("preset: user_id_only\n")
    known = known_keys("TokenRec") | known_keys("LightGCNSoftmax")
    assert make_config("TokenRec", "ml-100k", [file], QUIET, known)["prompt_history"] is False
    assert not make_config("LightGCNSoftmax", "ml-100k", [file], QUIET, known)["preset"]


def test_later_settings_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mq_codebook_size: 32\nllm_epochs: 7\n")
    config = make_config("TokenRec", "ml-100k", [file], {"llm_epochs": 9, **QUIET})
    assert (config["mq_codebook_size"], config["llm_epochs"], config["mq_skip"]) == (32, 9, True)


def test_presets_have_entries_for_data_sets():
    assert make_config("TokenRec", "ml-1m", (), QUIET)["prompt_order"] == "sequential"
    assert make_config("TokenRec", "lastfm", (), QUIET)["prompt_order"] == "shuffled"
    paper = {**QUIET, "preset": "paper"}
    assert make_config("TokenRec", "beauty", (), paper)["mq_codebook_size"] == 512
    assert make_config("EASE", "lastfm", (), QUIET)["reg_weight"] == 50.0


@pytest.mark.parametrize(
    ("model", "keys", "text"),
    [
        ("TokenRec", {"mq_num_codebook": 3}, "did you mean 'mq_num_codebooks'"),
        ("TokenRec", {"preset": "tunde"}, "allowed: paper, tuned, user_id_only"),
        ("BPR", {"embeding_size": 3}, "did you mean 'embedding_size'"),
        ("TokenRek", {}, "TokenRec"),
        ("Pop", {"preset": "tuned"}, "preset: 'tuned' was set, but Pop has no presets"),
        ("LightGCNSoftmax", {"preset": "tuned"}, "preset: 'tuned' was set, but LightGCNSoftmax has no presets"),
    ],
)
def test_mistakes(model, keys, text):
    with pytest.raises(ConfigError, match=text):
        make_config(model, "ml-100k", (), {**QUIET, **keys})


OUT_OF_RANGE = {
    "TokenRec": "mq_beta", "LightGCNSoftmax": "temperature", "GTN": "lambda2", "LTGNN": "alpha",
    "SASRecCE": "MAX_ITEM_LIST_LENGTH", "BERT4RecCE": "n_heads", "S3RecCE": "mip_weight", "RecencyEASE": "recency",
    "P5": "prompts_per_sample", "CID": "cid_clusters", "POD": "prompt_length", "CoLLM": "yes_no_share",
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_what_a_model_would_not_take_is_known_before_any_training(model, toy_data, monkeypatch):
    monkeypatch.setattr(pipeline, "run_model", lambda config: pytest.fail(f"{config['model']} was trained"))
    keys = {"data_path": str(toy_data), OUT_OF_RANGE[model]: -1}
    with pytest.raises(ConfigError, match=f"^{OUT_OF_RANGE[model]}: -1(.0)? is not allowed; allowed: "):
        pipeline.run_models(["Pop", model], "toy", (), keys)


@pytest.mark.parametrize(
    ("content", "text"), [("a: [1", "is not YAML"), ("- 1\n", "must hold keys and values"), (None, "cannot be read")]
)
def test_files_that_are_no_configuration(tmp_path, content, text):
    file = tmp_path / "broken.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=text):
        make_config("TokenRec", "ml-100k", [file], QUIET)


def test_values_are_read_as_recbole_reads_them():
    assert parse_value("1e-3") == 0.001 and parse_value("[1,2]") == [1, 2] and parse_value("False") is False


@pytest.mark.parametrize("text", ["__import__('pathlib').Path('ran').touch()", "open('ran', 'w')", "1/0", "exit()"])
def test_no_value_is_evaluated(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.yaml").write_text(f"cf_model: \"{text}\"\n")
    keys = {"preset": "paper", "llm_backbone": text}  # where cf_model is what the user says
    config = make_config("TokenRec", "ml-100k", ["hostile.yaml"], keys)
    assert config["cf_model"] == config["llm_backbone"] == text and not (tmp_path / "ran").exists()


def test_every_key_that_does_not_matter_is_one():
    keys = set(make_config("TokenRec", "ml-100k", (), QUIET).final_config_dict)
    assert keys >= NO_MATTER - {"ids_digest"}  # which a training adds


def test_texts_that_write_out_a_value_are_that_value():
    config = make_config("BPR", "ml-100k", (), {"topk": "[5, 7]", "valid_metric": "Hit@5", "load_col": "None"})
    assert config["topk"] == [5, 7] and config["load_col"] is None and config["valid_metric"] == "Hit@5"
