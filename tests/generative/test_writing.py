"""Trees of targets: one position for each beginning, and log-probabilities of IDs written one at a time."""

import pytest
import torch
from test_scoring import encode, exact

from recbole_tokenrec.generative.writing import log_likelihood, plant

ROWS, ITEMS = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([1, 12, 20, 21, 5, 20])


@pytest.mark.unit
def test_each_beginning_is_one_position(catalogue):
    *_, sequences, trie = catalogue
    tree = plant(trie, ROWS, ITEMS, 3)
    for row in range(3):
        beginnings = {
            tuple(sequences[item][:step])
            for item in ITEMS[row == ROWS].tolist()
            for step in range(len(sequences[item]))
        }
        nodes = [node for node in tree.nodes[row].tolist() if node != trie.n_nodes]
        assert len(nodes) == len(set(nodes)) == len(beginnings)
        walked = {trie.walk(torch.tensor([start], dtype=torch.long).view(1, -1)).item() for start in beginnings}
        assert walked == set(nodes)
    assert len(tree.token) == sum(len(sequences[item]) for item in ITEMS.tolist())
    for number, item in enumerate(ITEMS.tolist()):
        assert tree.token[tree.target == number].tolist() == sequences[item]


@pytest.mark.unit
def test_likelihood_is_that_of_one_id_at_a_time(catalogue):
    model, _, sequences, trie = catalogue
    hidden, mask = encode(catalogue, ["hello item_1 item_2", "item_45"])
    truth = exact(catalogue, hidden, mask)
    tree = plant(trie, ROWS, ITEMS, 2)
    with torch.no_grad():
        found = log_likelihood(model, hidden, mask, trie, tree)
    inner = trie.level[tree.nodes[tree.row, tree.position]] >= len(trie.prefix)  # `exact` leaves common words out
    total = torch.zeros(len(ITEMS)).index_add_(0, tree.target[inner], found[inner])
    torch.testing.assert_close(total, truth[ROWS, ITEMS], rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_written_ends_stand_for_all(catalogue):
    *_, sequences, trie = catalogue
    torch.manual_seed(0)
    items = torch.arange(1, 26).repeat(40)
    tree = plant(trie, torch.arange(len(items)) // 25, items, 40, end_share=0.25)
    ends = tree.token == sequences[1][-1]
    assert 0.15 < ends.float().mean() / (1 - ends.float().mean()) * 4 < 0.6
    assert tree.weight[ends].sum() == pytest.approx(1000, rel=0.1)
    assert (tree.weight[~ends] == 1).all() and int((~ends).sum()) == 40 * sum(len(s) - 1 for s in sequences[1:])
