"""A prefix trie of all item IDs, as arrays, so that one step of beam search is masked by a few tensor operations.

transformers' own hook, ``prefix_allowed_tokens_fn``, is a Python call for each beam of each user at each step. A
:class:`TrieProcessor` finds the nodes of all beams at once (a test compares the two), and can also leave out what a
user has taken already, exactly: a branch closes for him once he has taken all items below it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Trie:
    """Args:
        sequences: token ids of each item, ended by EOS; an empty one is an item that cannot be generated.
        vocab_size: above any token id.

    Attributes:
        n_nodes: nodes; 0 is the root, ``n_nodes`` itself stands for "no such prefix".
        item: (n_nodes + 1,) the item that ends at a node, or 0.
        size: (n_nodes + 1,) number of items at and below a node.
        path: (n_items, depth) the nodes from the first token of an item to its last; ``n_nodes`` beyond its end.
        parent, token, level: (n_nodes + 1,) a node's parent, the token that leads to it, and its distance from the
            root; the root is its own parent, ``n_nodes`` too, and their tokens and levels are 0.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], vocab_size: int, device="cpu"):
        self.vocab_size = vocab_size
        nodes: dict[tuple[int, int], int] = {}
        paths, ends = [], {}
        for item, sequence in enumerate(sequences):
            node, path = 0, []
            for token in sequence:
                node = nodes.setdefault((node, token), len(nodes) + 1)
                path.append(node)
            paths.append(path)
            if path:
                ends[node] = item
        self.n_nodes = len(nodes) + 1
        self.depth = max(map(len, paths))
        edges = sorted((parent * vocab_size + token, child) for (parent, token), child in nodes.items())
        keys, children = zip(*edges)
        self.keys = torch.tensor(keys, device=device)  # (edges,) ascending: parent * vocab_size + token
        self.children = torch.tensor(children, device=device)  # (edges,)
        parents = torch.arange(self.n_nodes + 2, device=device)
        self.first = torch.searchsorted(self.keys, parents * vocab_size)  # edges of p: first[p] … first[p + 1]
        self.item = torch.zeros(self.n_nodes + 1, dtype=torch.long, device=device)
        self.item[list(ends)] = torch.tensor(list(ends.values()), device=device)
        padded = [path + [self.n_nodes] * (self.depth - len(path)) for path in paths]
        self.path = torch.tensor(padded, device=device)
        self.size = torch.bincount(self.path.flatten(), minlength=self.n_nodes + 1)
        self.size[0], self.size[self.n_nodes] = len(ends), 0
        self.parent = torch.zeros(self.n_nodes + 1, dtype=torch.long, device=device)
        self.token = torch.zeros_like(self.parent)
        self.parent[self.children], self.token[self.children] = self.keys // vocab_size, self.keys % vocab_size
        self.parent[self.n_nodes] = self.n_nodes
        self.level = torch.zeros_like(self.parent)
        for step, nodes in enumerate(self.path.unbind(dim=1), start=1):
            self.level[nodes] = step
        self.level[self.n_nodes] = 0
        self.prefix = self._common_prefix()

    def _common_prefix(self) -> list[int]:
        """Tokens that every item's ID begins with, the last token of an ID excluded."""
        node, tokens = 0, []
        while self.first[node + 1] - self.first[node] == 1:
            edge = int(self.first[node])
            node = int(self.children[edge])
            if int(self.item[node]):
                break
            tokens.append(int(self.keys[edge]) % self.vocab_size)
        return tokens

    def walk(self, tokens: torch.Tensor, stay: bool = False) -> torch.Tensor:
        """Nodes (N,) that the token sequences (N, t) lead to from the root; with ``stay``, an item's end is kept
        whatever follows it."""
        node = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        for column in tokens.unbind(dim=1):
            key = node * self.vocab_size + column
            edge = torch.searchsorted(self.keys, key).clamp_max(len(self.keys) - 1)
            ahead = torch.where(self.keys[edge] == key, self.children[edge], self.n_nodes)
            node = torch.where(self.item[node] > 0, node, ahead) if stay else ahead
        return node

    def open_edges(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All edges that leave ``nodes`` (N,): rows (E,) of ``nodes``, and edge numbers (E,)."""
        start = self.first[nodes]
        count = self.first[nodes + 1] - start
        rows = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), count)
        offset = torch.arange(len(rows), device=nodes.device) - (count.cumsum(0) - count)[rows]
        return rows, start[rows] + offset

    def closed(self, rows: torch.Tensor, items: torch.Tensor, n_rows: int) -> torch.Tensor:
        """(n_rows, n_nodes + 1) bool: nodes with nothing left below once row ``rows[i]`` may not have ``items[i]``."""
        taken = torch.zeros(n_rows, self.n_nodes + 1, dtype=torch.long, device=items.device)
        cells = rows.unsqueeze(1) * (self.n_nodes + 1) + self.path[items]  # (P, depth)
        cells = cells.flatten()
        taken.view(-1).index_add_(0, cells, torch.ones_like(cells))
        return taken >= self.size.clamp_min(1)


class TrieProcessor:
    """A transformers ``LogitsProcessor``: minus infinity for each token that leads to no item (left for the user).

    Args:
        trie: of all items.
        num_beams: beams of a user; the rows of ``input_ids`` are (user, beam).
        closed: (users, n_nodes + 1) from :meth:`Trie.closed`, or None.
    """

    def __init__(self, trie: Trie, num_beams: int, closed: torch.Tensor | None = None):
        self.trie, self.num_beams, self.closed = trie, num_beams, closed

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids`` (N, t) beginning with the decoder's start token, ``scores`` (N, vocab) -> masked scores."""
        trie = self.trie
        rows, edges = trie.open_edges(trie.walk(input_ids[:, 1:]))
        if self.closed is not None:
            left = ~self.closed[rows // self.num_beams, trie.children[edges]]
            rows, edges = rows[left], edges[left]
        tokens = trie.keys[edges] % trie.vocab_size
        masked = torch.full_like(scores, -torch.inf)
        masked[rows, tokens] = scores[rows, tokens]
        return masked
