"""Backbones: from scratch, from a folder that save_pretrained wrote, and what is said when weights cannot be had."""

import json

import pytest
import torch

from recbole_tokenrec.errors import BackboneError
from recbole_tokenrec.llm.backbone import (
    add_id_tokens,
    backbone_state,
    load_backbone,
    rebuild_backbone,
    scratch_presets,
    weights_digest,
    word_level_tokenizer,
)
from recbole_tokenrec.llm.llm4rec import LLM4Rec, token_directions
from recbole_tokenrec.llm.prompts import Entities, PromptBatch, all_texts

pytestmark = pytest.mark.unit


def test_folder_gives_its_own_weights(tiny_t5):
    backbone = load_backbone(str(tiny_t5), all_texts())
    assert backbone.origin["source"] == "folder"
    torch.manual_seed(5)
    from transformers import T5Model

    expected = T5Model.from_pretrained(tiny_t5).get_input_embeddings().weight
    assert torch.equal(backbone.model.get_input_embeddings().weight, expected)


def test_id_tokens_extend_vocabulary_and_embedding(tiny_t5):
    backbone = load_backbone(str(tiny_t5), all_texts())
    words = len(backbone.tokenizer)
    ids = add_id_tokens(backbone, [f"<u1-{i}>" for i in range(100)])
    assert ids.tolist() == list(range(words, words + 100))
    assert backbone.model.get_input_embeddings().weight.shape[0] == max(256, words + 100)
    assert backbone.tokenizer("user_<u1-7><u1-8>")["input_ids"][-3:-1] == [words + 7, words + 8]


def test_scratch_preset_uses_sdpa_and_its_words():
    backbone = load_backbone("t5-scratch-mini", ["only these words."])
    assert backbone.model.config._attn_implementation == "sdpa"
    assert backbone.origin["source"] == "scratch"
    ids = backbone.tokenizer("these words only.")["input_ids"]
    assert backbone.tokenizer.unk_token_id not in ids and ids[-1] == backbone.tokenizer.eos_token_id


def test_word_level_tokenizer_splits_numbers_and_marks():
    texts = ["item_ 0 1 2 3 4 5 6 7 8 9 42 10, x"]
    assert word_level_tokenizer(texts).tokenize("item_42,x") == ["item", "_", "4", "2", ",", "x"]
    tokenizer = word_level_tokenizer(texts, whole=("item_",), digits=2)
    assert tokenizer.tokenize("item_1042 item_107") == ["item_", "10", "42", "item_", "10", "7"]
    assert tokenizer.tokenize("xitem_ 42_1") == ["x", "item_", "42", "<unk>", "1"]


def test_state_rebuilds_the_same_backbone_without_its_source(tiny_t5):
    backbone = load_backbone(str(tiny_t5), all_texts())
    state = json.loads(json.dumps(backbone_state(backbone)))
    names = [f"<u1-{i}>" for i in range(10)]
    add_id_tokens(backbone, names)
    again = rebuild_backbone(state)
    add_id_tokens(again, names)
    again.model.load_state_dict(backbone.model.state_dict())
    text = "Suggest a new item to user_<u1-3>."
    assert again.tokenizer(text)["input_ids"] == backbone.tokenizer(text)["input_ids"]


def test_token_start_keeps_the_directions_geometry():
    backbone = load_backbone("t5-scratch-mini", all_texts())
    ids = add_id_tokens(backbone, [f"<u{k}-{i}>" for k in (1, 2) for i in range(8)])
    model = LLM4Rec(backbone, output_dim=5, hidden_size=16)
    words = backbone.model.get_input_embeddings().weight[: int(ids[0])].detach().clone()
    directions = torch.randn(16, 6)
    model.start_token_embeddings(ids, directions, scale=0.5, seed=3)
    table = backbone.model.get_input_embeddings().weight.detach()
    assert torch.equal(table[: int(ids[0])], words)
    ratio = torch.cdist(table[ids], table[ids]) / torch.cdist(directions, directions).clamp_min(1e-9)
    off = ~torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(ratio[off], ratio[off].mean().expand(240), rtol=1e-3, atol=1e-4)
    assert table[ids].std().item() == pytest.approx(0.5 * words.std().item(), rel=0.05)


def test_token_directions_add_up_to_the_vectors():
    torch.manual_seed(0)
    truth = torch.randn(2 * 8, 5)
    codes = torch.randint(0, 8, (500, 2))
    vectors = truth[codes[:, 0]] + truth[8 + codes[:, 1]]
    directions = token_directions(codes, vectors, codebook_size=8, ridge=1e-3)
    rebuilt = directions[codes[:, 0]] + directions[8 + codes[:, 1]]
    torch.testing.assert_close(rebuilt, vectors - vectors.mean(dim=0), rtol=1e-2, atol=1e-2)


def test_token_directions_are_the_ridge_regression_whichever_side_is_smaller():
    torch.manual_seed(0)
    for n in (9, 60):  # fewer and more entities than the 2 * 8 tokens
        codes, vectors = torch.randint(0, 8, (n, 2)), torch.randn(n, 5)
        tokens = torch.zeros(n, 16).scatter_(1, codes + torch.tensor([0, 8]), 1.0)
        expected = torch.linalg.solve(tokens.T @ tokens + torch.eye(16), tokens.T @ (vectors - vectors.mean(dim=0)))
        torch.testing.assert_close(token_directions(codes, vectors, codebook_size=8), expected, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_user_vector():
    backbone = load_backbone("t5-scratch-mini", all_texts())
    model = LLM4Rec(backbone, output_dim=5, hidden_size=16).eval()
    ids = torch.tensor([[5, 6, 7, 1]])
    alone = model(PromptBatch(ids, torch.ones_like(ids)))
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(model(PromptBatch(padded, mask)), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t5-scratch-huge", "neither an existing folder nor a from-scratch preset"),
        ("google-t5/t5-small", "could not be loaded"),
        ("./missing", "neither an existing folder"),
    ],
)
def test_weights_that_cannot_be_had_are_an_error_that_says_what_to_set(name, text):
    with pytest.raises(BackboneError, match=text) as caught:
        load_backbone(name, all_texts())
    assert name in str(caught.value)
    assert scratch_presets()[0] in str(caught.value) and "save_pretrained" in str(caught.value)


def test_folder_without_weights_and_foreign_architecture(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="holds no weights"):
        load_backbone(str(tmp_path / "empty"), all_texts())
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "bert"
    )
    word_level_tokenizer(["a"]).save_pretrained(tmp_path / "bert")
    with pytest.raises(BackboneError, match="architecture 'bert' is not supported"):
        load_backbone(str(tmp_path / "bert"), all_texts())


def test_a_pooled_entity_is_read_as_the_sum_of_its_tokens():
    backbone = load_backbone("t5-scratch-mini", all_texts())
    ids = add_id_tokens(backbone, [f"<u1-{i}>" for i in range(8)])
    model = LLM4Rec(backbone, output_dim=5, hidden_size=16).eval()
    at = torch.tensor([[False, True, False], [False, False, True]])
    words = torch.randint(5, 20, (2, 3))
    tokens = ids[torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])]
    pooled = model(PromptBatch(words, torch.ones_like(words), (Entities(at, tokens),)))
    table = backbone.model.get_input_embeddings().weight
    with torch.no_grad():  # the same prompts with one word each whose embedding is that sum
        table[ids[0]], table[ids[4]] = table[tokens].sum(dim=1) / 2
    written = words.masked_scatter(at, ids[[0, 4]])
    torch.testing.assert_close(model(PromptBatch(written, torch.ones_like(words))), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.unit
def test_the_digest_of_a_from_scratch_preset_is_that_of_its_file(tmp_path, monkeypatch):
    (tmp_path / "backbone").mkdir()
    file = tmp_path / "backbone" / "t5-mine.json"
    monkeypatch.setattr("recbole_tokenrec.llm.backbone.properties_dir", lambda: tmp_path)
    file.write_text('{"d_model": 8}')
    before = weights_digest("t5-mine")
    file.write_text('{"d_model": 16}')
    assert len(before) == 1 and weights_digest("t5-mine") != before and weights_digest("google/t5") == []
