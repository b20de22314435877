"""The trie's arrays against brute force over the sequences."""

import numpy as np
import pytest
import torch
from transformers.generation import PrefixConstrainedLogitsProcessor

from recbole_tokenrec.generative.trie import Trie, TrieProcessor

VOCAB, EOS = 30, 1


def some_sequences(n=60, seed=0):
    """Item 0 has none; the others begin alike (7, 8), differ in length, and one may begin another."""
    rng = np.random.default_rng(seed)
    found = set()
    while len(found) < n:
        found.add((7, 8, *rng.integers(10, 16, rng.integers(1, 5)).tolist(), EOS))
    return [[], *map(list, sorted(found))]


def allowed(sequences, prefix):
    n = len(prefix)
    return sorted({s[n] for s in sequences if s[:n] == list(prefix) and len(s) > n})


@pytest.mark.unit
def test_walk_finds_items_and_nothing_else():
    sequences = some_sequences()
    trie = Trie(sequences, VOCAB)
    assert trie.depth == max(map(len, sequences)) and trie.prefix == [7, 8]
    for item, sequence in enumerate(sequences[1:], start=1):
        assert int(trie.item[trie.walk(torch.tensor([sequence]))]) == item
        assert int(trie.item[trie.walk(torch.tensor([sequence[:-1]]))]) == 0
    wrong = torch.tensor([[7, 8, 29], [9, 8, 10], [7, 9, 10]])
    assert (trie.walk(wrong) == trie.n_nodes).all()


@pytest.mark.unit
def test_mask_is_that_of_transformers_with_brute_force():
    sequences = some_sequences()
    trie, rng = Trie(sequences, VOCAB), np.random.default_rng(1)
    n = 4
    rows = [s[:n] for s in sequences if len(s) >= n]
    rows = torch.tensor([[0, *rows[i]] for i in rng.integers(len(rows), size=24)])  # the decoder's start token first
    alive = [row for row in rows.tolist() if allowed(sequences, row[1:])]
    rows = torch.tensor(alive[: len(alive) // 2 * 2])
    scores = torch.randn(len(rows), VOCAB)
    theirs = PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(sequences, ids[1:].tolist()), 2)
    torch.testing.assert_close(TrieProcessor(trie, 2)(rows, scores), theirs(rows, scores))
    dead = torch.tensor([[0, 9, 9], [0, 7, 20]])
    assert torch.isinf(TrieProcessor(trie, 2)(dead, torch.zeros(2, VOCAB))).all()


@pytest.mark.unit
def test_closed_branches_hold_taken_items_only():
    sequences = some_sequences()
    trie, rng = Trie(sequences, VOCAB), np.random.default_rng(2)
    taken = [rng.choice(np.arange(1, len(sequences)), 25, replace=False) for _ in range(3)]
    taken[2] = np.arange(1, len(sequences))
    rows = torch.from_numpy(np.repeat(np.arange(3), [len(part) for part in taken]))
    closed = trie.closed(rows, torch.from_numpy(np.concatenate(taken)), 3)
    for row, part in enumerate(taken):
        left = [s for item, s in enumerate(sequences) if s and item not in part]
        for sequence in sequences[1:]:
            for n in range(1, len(sequence) + 1):
                node = int(trie.walk(torch.tensor([sequence[:n]])))
                assert bool(closed[row, node]) == (not any(s[:n] == sequence[:n] for s in left))
    ids = torch.tensor([[0, 7, 8]] * 3)
    masked = TrieProcessor(trie, 1, closed)(ids, torch.zeros(3, VOCAB))
    for row, part in enumerate(taken):
        left = [s if item not in part else [] for item, s in enumerate(sequences)]
        assert masked[row].isfinite().nonzero().flatten().tolist() == allowed(left, [7, 8])
