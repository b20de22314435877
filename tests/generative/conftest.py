"""A small catalogue whose every ID can be scored by brute force."""

import pytest
import torch

from recbole_tokenrec.generative.templates import ENTITY_WORDS
from recbole_tokenrec.generative.trie import Trie
from recbole_tokenrec.generative.words import WordEncoder
from recbole_tokenrec.llm.backbone import load_backbone


@pytest.fixture(scope="module")
def catalogue():
    """Backbone with random weights, trie and ID tokens of 25 items whose IDs have three lengths."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = load_backbone("t5-scratch-mini", [ENTITY_WORDS, "hello"], with_head=True)
    words = WordEncoder(backbone.tokenizer)
    names = ["", *(f"item_{n}" for n in [*range(1, 10), *range(40, 50), *range(400, 406)])]
    sequences = [[*words.tokens(name), words.eos_id] if name else [] for name in names]
    trie = Trie(sequences, backbone.model.get_input_embeddings().weight.shape[0])
    return backbone.model.eval(), words, sequences, trie
