"""Prompts by words equal the tokenizer's output on the whole text, and marks are where they belong."""

import pytest
from transformers import PreTrainedTokenizerFast

from recbole_tokenrec.generative.templates import NUM_SEEN, STYLES, TEMPLATES, all_texts
from recbole_tokenrec.generative.words import MAX_MARK, WordEncoder, fill
from recbole_tokenrec.llm.backbone import word_level_tokenizer


def unigram_tokenizer():
    """A sentence-piece style tokenizer as T5's: pieces that begin with a mark where a word begins."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [*all_texts(), *(f"user_{n} item_{1000 + n}" for n in range(300))]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=180, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.unit
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", [lambda: word_level_tokenizer(all_texts(), ("user_",), 2), unigram_tokenizer])
def test_words_equal_the_whole_text(make, style):
    names = {"compact": ["1001", "1042"], "printed": ["item_1001", "item_1042"]}
    encoder = WordEncoder(make())
    for texts in TEMPLATES.values():
        for template in texts:
            words = fill(template, user="user_27", items=STYLES[style].listed(names[style]))
            ids, marks = encoder.whole_words(words)
            assert ids == encoder.tokenizer(" ".join(words))["input_ids"]
            assert encoder.tokenizer.unk_token_id not in ids
            # one mark for each word, rising, 0 for EOS
            expected = [count for count, word in enumerate(words, 1) for _ in encoder.tokens(word)]
            assert marks == [*expected, 0]


@pytest.mark.unit
def test_pod_marks_entities_only():
    names = ["user_27", "item_1001", "item_1042"]
    encoder = WordEncoder(word_level_tokenizer(all_texts(), ("user_",), 2), names)
    ids, marks = encoder.entities(["user_27", "has", "taken", "item_1001", ",", "item_1042"])
    of = [marks[i] for i, token in enumerate(ids) if token != encoder.eos_id]
    lengths = [len(encoder.tokens(word)) for word in names]
    assert of == [1] * lengths[0] + [0, 0] + [2] * lengths[1] + [0] + [3] * lengths[2]


@pytest.mark.unit
def test_long_prompts_share_the_last_mark_and_batches_are_padded():
    encoder = WordEncoder(word_level_tokenizer(all_texts(), ("user_",), 2))
    assert max(encoder.whole_words(["next"] * 700)[1]) == MAX_MARK
    batch = encoder.collate([encoder.whole_words(["next"]), encoder.whole_words(["next"] * 4)])
    assert batch.input_ids.shape == batch.marks.shape == batch.attention_mask.shape == (2, 5)
    assert batch.attention_mask.sum(dim=1).tolist() == [2, 5]
    assert (batch.input_ids[0, 2:] == encoder.pad_id).all() and (batch.marks[0, 1:] == 0).all()


@pytest.mark.unit
def test_templates_are_eleven_and_differ():
    for task, texts in TEMPLATES.items():
        assert len(texts) == NUM_SEEN + 1 == len(set(texts))
        for template in texts:
            slots = [word for word in template.split() if "{" in word]
            assert slots.count("{user}") == 1 and slots.count("{items}") == (task == "sequential")
