"""Tensor prompts equal the tokenizer's output on the full string; long histories lose whole items."""

import pytest
import torch

from recbole_tokenrec.errors import BackboneError
from recbole_tokenrec.llm.backbone import add_id_tokens, load_backbone
from recbole_tokenrec.llm.prompts import (
    HISTORY_TEMPLATES,
    NUM_SEEN,
    USER_TEMPLATES,
    PromptBuilder,
    all_texts,
)
from recbole_tokenrec.tokenizers import token_names

pytestmark = pytest.mark.unit
K, K_ITEM, L = 3, 2, 16


@pytest.fixture(scope="module")
def backbone_and_ids():
    backbone = load_backbone("t5-scratch-mini", all_texts())
    users, items = token_names("u", K, L), token_names("v", K_ITEM, L)
    return backbone, add_id_tokens(backbone, users).view(K, L), add_id_tokens(backbone, items).view(K_ITEM, L)


def builder(backbone_and_ids, history, style, max_tokens=512):
    backbone, users, items = backbone_and_ids
    return PromptBuilder(backbone.tokenizer, users, items, history, style, max_tokens)


def test_eleven_templates_of_each_kind_ten_seen():
    assert len(HISTORY_TEMPLATES) == len(USER_TEMPLATES) == NUM_SEEN + 1
    assert len(set(HISTORY_TEMPLATES + USER_TEMPLATES)) == 22
    assert USER_TEMPLATES[0] == "I wonder what the {user} will like. Can you help me decide?"


def test_paper_prompt_reads_as_printed(backbone_and_ids):
    prompts = builder(backbone_and_ids, True, "printed")
    assert prompts.render(0, [1, 2, 3], [[4, 5], [7, 8]]) == (
        "According to what items the user_<u1-1><u2-2><u3-3> has interacted with: "
        "item_<v1-4><v2-5>, item_<v1-7><v2-8>. Can you describe the user's preferences?"
    )


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("style", ["printed", "compact"])
def test_tensors_equal_the_tokenized_string(backbone_and_ids, history, style):
    prompts = builder(backbone_and_ids, history, style)
    number = torch.tensor([3, 0, 5, 1])
    user_codes, item_codes = torch.randint(0, L, (4, K)), torch.randint(0, L, (4, 5, K_ITEM))
    for template in range(prompts.num_templates):
        batch = prompts.build(template, user_codes, item_codes if history else None, number)
        for row in range(4):
            if history and number[row] == 0:
                continue  # a prompt that lists nothing is no sentence; see the next test
            text = prompts.render(template, user_codes[row], item_codes[row, : number[row]] if history else ())
            length = int(batch.attention_mask[row].sum())
            ids = batch.input_ids[row, :length].tolist()
            assert ids == prompts.tokenizer(text)["input_ids"]
            assert prompts.tokenizer.unk_token_id not in ids
            assert (batch.input_ids[row, length:] == prompts.pad_id).all()


def test_empty_history_keeps_head_user_and_tail(backbone_and_ids):
    prompts = builder(backbone_and_ids, True, "printed")
    user, nothing = torch.zeros(1, K, dtype=torch.long), torch.zeros(1, 0, K_ITEM, dtype=torch.long)
    batch = prompts.build(0, user, nothing, torch.tensor([0]))
    head, link, _, tail = prompts.blocks[0]
    assert batch.input_ids.shape[1] == len(head) + K + len(link) + len(tail)
    assert batch.input_ids[0, -1] == prompts.tokenizer.eos_token_id


def test_capacity_is_the_most_whole_items_that_fit(backbone_and_ids):
    prompts = builder(backbone_and_ids, True, "printed", max_tokens=64)
    for template in range(prompts.num_templates):
        most = prompts.capacity(template)
        codes = torch.zeros(1, most + 1, K_ITEM, dtype=torch.long)
        user = torch.zeros(1, K, dtype=torch.long)
        assert prompts.build(template, user, codes, torch.tensor([most])).input_ids.shape[1] <= 64
        assert prompts.build(template, user, codes, torch.tensor([most + 1])).input_ids.shape[1] > 64


def test_a_backbone_that_has_id_tokens_already_is_refused(backbone_and_ids):
    backbone, _, _ = backbone_and_ids
    with pytest.raises(BackboneError, match="<u1-0> already"):
        add_id_tokens(backbone, ["<u1-0>"])


def test_pooled_prompts_give_each_entity_one_position_and_the_rest_stays(backbone_and_ids):
    pooled, compact = (builder(backbone_and_ids, True, style) for style in ("pooled", "compact"))
    number = torch.tensor([3, 0, 5])
    user_codes, item_codes = torch.randint(0, L, (3, K)), torch.randint(0, L, (3, 5, K_ITEM))
    _, users, items = backbone_and_ids
    for template in range(pooled.num_templates):
        short, long = (p.build(template, user_codes, item_codes, number) for p in (pooled, compact))
        assert pooled.capacity(template) > compact.capacity(template)
        lengths, full = short.attention_mask.sum(dim=1), long.attention_mask.sum(dim=1)
        assert torch.equal(full - lengths, K - 1 + number * (K_ITEM - 1))
        at_user, at_items = short.entities
        assert at_user.at.sum(dim=1).tolist() == [1, 1, 1] and torch.equal(at_items.at.sum(dim=1), number)
        assert torch.equal(at_user.tokens, users[torch.arange(K), user_codes])
        listed = torch.cat([item_codes[row, :n] for row, n in enumerate(number.tolist())])
        assert torch.equal(at_items.tokens, items[torch.arange(K_ITEM), listed])
        words = ~(at_user.at | at_items.at) & short.attention_mask.bool()
        spoken = ~torch.isin(long.input_ids, torch.cat([users.flatten(), items.flatten()]))
        for row in range(3):  # the words between the entities are the same
            left = long.input_ids[row][spoken[row] & long.attention_mask[row].bool()]
            assert torch.equal(short.input_ids[row][words[row]], left)
