"""Names of ID tokens, and the statistics that tell how well codes separate entities."""

import math

import pytest
import torch

from recbole_tokenrec.tokenizers import code_statistics, entity_tokens, token_names

pytestmark = pytest.mark.unit


def test_names_follow_the_codebooks_in_order():
    assert token_names("v", 2, 3) == ["<v1-0>", "<v1-1>", "<v1-2>", "<v2-0>", "<v2-1>", "<v2-2>"]
    assert entity_tokens("u", torch.tensor([7, 0])) == ["<u1-7>", "<u2-0>"]


def test_statistics_by_hand():
    codes = torch.tensor([[0, 0], [1, 1], [1, 1], [2, 1], [3, 0]])  # row 0 is padding
    found = code_statistics(codes, codebook_size=4)
    assert found["unique_share"] == 0.5  # (2, 1) and (3, 0) of four entities
    assert found["codebook_use"] == [0.75, 0.5]
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found["perplexity"][0] == pytest.approx(math.exp(entropy))
