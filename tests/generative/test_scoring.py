"""Beam search against the exact ranking of a small catalogue by each ID's log-probability."""

import pytest
import torch

from recbole_tokenrec.generative.scoring import Beams, beam_search, beams_needed, score_matrix


def encode(catalogue, texts):
    model, words, *_ = catalogue
    batch = words.collate([words.whole_words(text.split()) for text in texts])
    with torch.no_grad():
        hidden = model.get_encoder()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
    return hidden, batch.attention_mask


def exact(catalogue, hidden, mask):
    """(B, n_items) log-probability of each ID after the words that all share."""
    model, _, sequences, trie = catalogue
    scores = torch.full((len(hidden), len(sequences)), -torch.inf)
    for item, sequence in enumerate(sequences[1:], start=1):
        labels = torch.tensor([sequence] * len(hidden))
        with torch.no_grad():
            logits = model(encoder_outputs=(hidden,), attention_mask=mask, labels=labels).logits
        steps = logits.log_softmax(-1).gather(2, labels.unsqueeze(-1)).squeeze(-1)
        scores[:, item] = steps[:, len(trie.prefix) :].sum(dim=1)
    return scores


@pytest.mark.unit
def test_wide_beams_find_the_exact_ranking(catalogue):
    model, _, sequences, trie = catalogue
    hidden, mask = encode(catalogue, ["hello item_1 item_2", "item_45"])
    beams = beam_search(model, hidden, mask, trie, num_beams=30)
    scores, truth = score_matrix(beams, len(sequences)), exact(catalogue, hidden, mask)
    torch.testing.assert_close(scores, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_narrow_beams_give_real_untaken_items_and_nothing_else(catalogue):
    model, _, sequences, trie = catalogue
    hidden, mask = encode(catalogue, ["hello item_1 item_2", "item_45"])
    taken = torch.tensor([1, 2, 3, 20, 5, 6])
    closed = trie.closed(torch.tensor([0, 0, 0, 0, 1, 1]), taken, 2)
    beams = beam_search(model, hidden, mask, trie, 6, closed)
    for row, forbidden in enumerate(({0, 1, 2, 3, 20}, {0, 5, 6})):
        found = beams.items[row].tolist()
        assert len(set(found)) == 6 and not set(found) & forbidden
    scores, truth = score_matrix(beams, len(sequences)), exact(catalogue, hidden, mask)
    assert scores.isfinite().sum(dim=1).tolist() == [6, 6]
    finite = scores.isfinite()
    torch.testing.assert_close(scores[finite], truth[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_more_beams_than_items_left(catalogue):
    model, _, sequences, trie = catalogue
    hidden, mask = encode(catalogue, ["hello"])
    taken = torch.arange(1, len(sequences) - 2)
    closed = trie.closed(torch.zeros_like(taken), taken, 1)
    scores = score_matrix(beam_search(model, hidden, mask, trie, 8, closed), len(sequences))
    assert scores[0].isfinite().nonzero().flatten().tolist() == [len(sequences) - 2, len(sequences) - 1]


@pytest.mark.unit
@pytest.mark.parametrize("constrained", [True, False])
def test_beams_that_share_a_prompt_find_what_copies_of_it_do(catalogue, constrained):
    model, _, sequences, trie = catalogue
    hidden, mask = encode(catalogue, ["hello item_1 item_2", "item_45", "item_9 hello item_404 item_7"])
    shared, copied = (
        beam_search(model, hidden, mask, trie, 7, constrained=constrained, share_prompts=share)
        for share in (True, False)
    )
    assert torch.equal(shared.items, copied.items) and bool((shared.items > 0).all()) == constrained
    torch.testing.assert_close(shared.scores, copied.scores, rtol=1e-4, atol=1e-5)
    hooks = [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert not hooks


@pytest.mark.unit
def test_free_beams_keep_items_only(catalogue):
    model, _, sequences, trie = catalogue
    hidden, mask = encode(catalogue, ["hello item_1 item_2", "item_45"])
    beams = beam_search(model, hidden, mask, trie, 5, constrained=False)
    assert ((beams.items > 0) == beams.scores.isfinite()).all()


@pytest.mark.unit
def test_scores_elsewhere_are_minus_infinity():
    beams = Beams(torch.tensor([[3, 0, 1]]), torch.tensor([[-1.0, -torch.inf, -2.0]]))
    expected = torch.tensor([[-torch.inf, -2.0, -torch.inf, -1.0, -torch.inf]])
    torch.testing.assert_close(score_matrix(beams, 5), expected)
    assert beams_needed({"num_beams": None, "topk": [10, 30, 20]}) == 31
    assert beams_needed({"num_beams": 7, "topk": [10]}) == 7
