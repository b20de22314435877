"""What a broken model looks like is found, and what a sound one looks like is not."""

import pytest
import torch

from recbole_tokenrec.health import (
    code_figures,
    code_findings,
    score_figures,
    score_findings,
    vector_figures,
    vector_findings,
)

pytestmark = pytest.mark.unit


def padded(codes):
    return torch.cat([torch.zeros(1, codes.shape[1], dtype=torch.long), codes])


def test_sound_codes_give_no_finding():
    codes = padded(torch.stack([torch.arange(256) % 16, torch.arange(256) // 16], dim=1))
    figures = code_figures(codes, 16)
    assert figures["entities"] == 256 and figures["unique_share"] == 1.0
    assert code_findings("user", figures, 16) == []
    few = padded(torch.arange(8).unsqueeze(1))
    assert code_findings("user", code_figures(few, 16), 16) == []  # 8 entities can use 8 of 16 codewords at most


def test_dead_codebooks_are_named():
    n = torch.arange(256)
    codes = padded(torch.stack([n % 16, n % 4, torch.zeros(256, dtype=torch.long), n // 16], dim=1))
    assert code_findings("item", code_figures(codes, 16), 16) == [
        "item codebook 2 is mostly dead: 25% of its 16 codewords are in use",
        "item codebook 3 says nearly nothing: perplexity 1.00, at best 16",
    ]
    text = code_findings("user", code_figures(padded(codes[1:, 1:3]), 4), 4)
    assert text[-1].startswith("users cannot be told apart: 0% have a code that nobody else has")


def test_collapsed_user_vectors():
    torch.manual_seed(0)
    sound = torch.randn(200, 16)
    figures = vector_figures(sound)
    assert abs(figures["mean_cosine"]) < 0.05 and figures["effective_rank"] > 10 and vector_findings(figures) == []
    one_way = torch.ones(200, 16) + 0.01 * torch.randn(200, 16)
    assert vector_figures(one_way)["mean_cosine"] > 0.999
    assert "user vectors have collapsed: mean cosine 0.99" in vector_findings(vector_figures(one_way))[0]
    on_a_line = torch.randn(200, 1) * torch.randn(1, 16)
    assert vector_figures(on_a_line)["effective_rank"] == pytest.approx(1.0, abs=0.01)
    assert vector_findings(vector_figures(on_a_line))
    same = torch.ones(50, 4)
    assert vector_figures(same) == {"mean_cosine": pytest.approx(1.0), "effective_rank": 0.0}


def test_scores():
    torch.manual_seed(0)
    sound = torch.randn(20, 100)
    assert score_findings(score_figures(sound)) == []
    flat = torch.full((20, 100), 0.7) + 1e-6 * torch.randn(20, 100)
    assert score_findings(score_figures(flat))[0].startswith("scores are nearly constant over the items")
    tied = (sound > 0).float()
    assert score_findings(score_figures(tied)) == ["100% of the users have equal scores among their ten best items"]
    sound[0, :50] = float("nan")
    assert score_findings(score_figures(sound)) == ["2.5% of the scores are not finite"]
