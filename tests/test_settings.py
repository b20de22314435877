"""Every key has a range, every mistake an error that names key, value and what is allowed."""

import pytest
import yaml

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.paths import properties_dir
from recbole_tokenrec.registry import available_presets, preset_values
from recbole_tokenrec.settings import OPTIONS, read_settings

pytestmark = pytest.mark.unit
PRESETS = available_presets()


def values(preset="tuned", **changed):
    found = {**yaml.safe_load((properties_dir() / "model" / "TokenRec.yaml").read_text()), **preset_values(preset)}
    return {**{key: found.get(key) for key in (*OPTIONS, "train_neg_sample_args")}, **changed}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_every_key_and_nothing_else(preset):
    read_settings(values(preset))
    assert set(preset_values(preset)) - {"datasets"} <= set(OPTIONS)


def test_keys_that_came_later_have_a_value_beside_the_presets():
    """A checkpoint of an earlier version lacks them, and gets what model/TokenRec.yaml says: what it was trained by.

    These keys were there from the start, so that presets alone may set them. A new one is not to be added here.
    """
    first = """
        cf_embedding_size cf_epochs cf_eval_step cf_item_offset cf_learning_rate cf_loss cf_n_layers cf_recency
        cf_reg_weight cf_stopping_step cf_target_ratio cf_target_recency cf_target_weight cf_targets cf_temperature
        cf_train_batch_size cf_user_table llm_backbone llm_batching llm_clip_grad_norm llm_distill llm_ema llm_epochs
        llm_eval_step llm_learning_rate llm_loss llm_lr_decay llm_projection_size llm_residual llm_stopping_step
        llm_target_ratio llm_target_weight llm_temperature llm_token_init llm_train_batch_size llm_user_tokens
        llm_warmup_ratio llm_weight_decay mq_beta mq_codebook_lr_ratio mq_codebook_size mq_codeword_dim mq_epochs
        mq_hidden_size mq_kmeans_init mq_learning_rate mq_min_steps mq_num_codebooks mq_revive_dead mq_skip
        mq_train_batch_size mq_user_num_codebooks prompt_history prompt_max_history prompt_style
    """
    common = yaml.safe_load((properties_dir() / "model" / "TokenRec.yaml").read_text())
    assert set(OPTIONS) - set(common) <= set(first.split())


def test_own_keys_of_a_preset_beat_the_data_sets_of_its_base():
    tuned, alone = (preset_values(name)["datasets"]["ml-1m"] for name in ("tuned", "user_id_only"))
    assert tuned["prompt_decoder_items"] > 0 and "prompt_decoder_items" not in alone
    assert alone["cf_recency"] == tuned["cf_recency"]


def test_a_preset_adds_to_the_data_sets_of_its_base():
    tuned, alone = (preset_values(name)["datasets"]["lastfm"] for name in ("tuned", "user_id_only"))
    assert alone["cf_targets"] == tuned["cf_targets"] and "llm_temperature" not in tuned
    assert alone["llm_temperature"] != preset_values("user_id_only")["llm_temperature"]


def test_presets_differ_only_where_they_must():
    full, short = values("tuned"), values("user_id_only")
    assert {key for key in OPTIONS if full[key] != short[key]} == {"prompt_history", "prompt_decoder_items"}


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("mq_num_codebooks", 0, r"mq_num_codebooks: 0 is not allowed; allowed: int in \[1, 64\]"),
        ("mq_num_codebooks", 2.5, "mq_num_codebooks: 2.5"),
        ("mq_num_codebooks", True, "mq_num_codebooks: True"),
        ("mq_masking_ratio", 1.5, r"mq_masking_ratio: 1.5 is not allowed; allowed: float in \[0, 1\]"),
        ("llm_temperature", 0, r"llm_temperature: 0 is not allowed; allowed: float in \(0, inf\)"),
        ("llm_temperature", float("nan"), "llm_temperature: nan"),
        ("cf_loss", "softmax_cosin", "did you mean 'softmax_cosine'"),
        ("prompt", "all", "allowed: one of seen, unseen"),
        ("cf_model", None, "cf_model: a value is needed"),
        ("cf_config", 3, "allowed: a mapping or empty"),
        ("stage_cache", "maybe", "allowed: true or false"),
        ("llm_target_ratio", [0.5], "llm_target_ratio"),
        ("llm_target_ratio", [0.5, 0.2], "llm_target_ratio"),
        ("cf_target_ratio", ["a", 0.2], "cf_target_ratio"),
        ("cf_targets", "nxt", "did you mean 'next'"),
        ("cf_targets", ["next", "everything"], "cf_targets: 'everything' is not allowed"),
        ("cf_targets", [], r"cf_targets: \[\] is not allowed; allowed: one of all, next, random, or a list of them"),
    ],
)
def test_wrong_values(key, value, text):
    with pytest.raises(ConfigError, match=text):
        read_settings(values(**{key: value}))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"cf_user_table": True}, "llm_user_tokens: 'visible' needs"),
        ({"cf_loss": "own"}, "llm_user_tokens: 'visible' needs"),
        ({"cf_model": "BPR"}, "softmax_cosine needs LightGCN"),
        ({"cf_n_layers": 0, "cf_targets": "all"}, "cf_n_layers: 0"),
        ({"cf_n_layers": 0}, "cf_targets: 'next' needs"),
        ({"cf_user_table": True, "llm_user_tokens": "all", "prompt_decoder_items": 0}, "cf_targets: 'next' needs"),
        ({"llm_batching": "interactions"}, "needs llm_batching: users"),
        (
            {"llm_batching": "interactions", "prompt_order": "shuffled", "llm_item_dropout": 0.2},
            "llm_item_dropout: 0.2 needs llm_batching: users",
        ),
        ({"prompt_decoder_items": 5, "prompt_style": "compact"}, "5 needs prompt_style: pooled; it is compact; or set"),
        ({"prompt_decoder_items": 5, "prompt_order": "shuffled"}, "needs prompt_order: sequential"),
    ],
)
def test_contradictions(changed, text):
    with pytest.raises(ConfigError, match=text):
        read_settings(values(**changed))
