"""Exact search in torch: all cosines, in blocks that obey a memory budget."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.retrieval.base import ItemIndex

_BYTES = 8  # of one score: itself, and what topk takes beside it


class ExactIndex(ItemIndex):
    """All items are scored; equal scores come in the order of the items.

    Args:
        vectors: (n, d); kept as unit rows on their own device.
        memory_budget_gb: what a block of scores may take. Queries are split first, then items.
    """

    def __init__(self, vectors: torch.Tensor, memory_budget_gb: float = 2.0):
        super().__init__(vectors)
        if not memory_budget_gb > 0:
            raise ConfigError(f"memory_budget_gb: {memory_budget_gb!r} is not allowed; allowed: float in (0, inf)")
        self.memory_budget_gb = memory_budget_gb
        self.vectors = F.normalize(torch.as_tensor(vectors).detach().float(), dim=-1)

    def search(self, queries, k, exclude=None, candidates=None):
        """See :meth:`ItemIndex.search`; the result is on the item vectors' device."""
        queries, candidates = self._checked(queries, k, candidates)
        device = self.vectors.device
        queries = F.normalize(queries.to(device).float(), dim=-1)
        vectors, banned = self.vectors, None
        if exclude is not None:
            # as numbers of a virtual (B, n) matrix, in order: each block takes a slice of them
            banned = (exclude[0].to(device) * self.size + exclude[1].to(device)).sort().values
        items = None  # all of them, in their order: no list of a catalogue's numbers for every query
        if candidates is not None:
            items = candidates.to(device)
            vectors = vectors[items]
        budget = max(int(self.memory_budget_gb * 2**30 / _BYTES), 1)  # scores that may exist at once
        width = min(max(len(vectors), 1), budget)
        height = max(1, budget // width)
        found = torch.zeros(len(queries), k, dtype=torch.long, device=device)
        scores = torch.full((len(queries), k), -torch.inf, device=device)
        for top in range(0, len(queries), height):
            part = queries[top : top + height]
            best_items, best_scores = found[top : top + height], scores[top : top + height]
            for left in range(0, len(vectors), width):
                block = None if items is None else items[left : left + width]
                score = part @ vectors[left : left + width].T
                if items is None and left == 0:
                    score[:, 0] = -torch.inf  # the padding item
                if banned is not None:
                    _ban(score, banned, top, left, block, self.size)
                value, place = score.topk(min(k, score.shape[1]), dim=1)
                number = place + left if block is None else block[place]
                both = torch.cat([best_scores, value], dim=1)
                value, order = both.topk(k, dim=1)
                chosen = torch.cat([best_items, number], dim=1).gather(1, order)
                best_items.copy_(chosen.masked_fill(value == -torch.inf, 0))
                best_scores.copy_(value)
        return found, scores

    def extended(self, vectors):
        new = F.normalize(self._checked_new(vectors).detach().to(self.vectors), dim=-1)
        twin = ExactIndex.__new__(ExactIndex)
        twin.vectors, twin.memory_budget_gb = torch.cat([self.vectors, new]), self.memory_budget_gb
        twin.size, twin.dim = twin.vectors.shape
        return twin


def _ban(score: torch.Tensor, banned: torch.Tensor, top: int, left: int, block: torch.Tensor | None, size: int) -> None:
    """Set the excluded pairs of this block of scores (b, w) to -inf: of items ``block`` (w,), or from ``left`` on."""
    ends = torch.tensor([top * size, (top + len(score)) * size], device=banned.device)
    first, last = torch.searchsorted(banned, ends).tolist()
    pairs = banned[first:last]
    rows, items = pairs // size - top, pairs % size
    if block is None:
        place = items - left
        here = (place >= 0) & (place < score.shape[1])
    else:
        place = torch.searchsorted(block, items).clamp_max(len(block) - 1)
        here = block[place] == items
    score[rows[here], place[here]] = -torch.inf
