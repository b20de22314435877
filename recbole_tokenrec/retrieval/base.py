"""What every item index promises, and the search that approximate backends share.

Items are RecBole's item numbers: row j of the vectors is item j, and row 0, the padding item, is never found. Scores
are cosines; queries need not be normalised. Places that cannot be filled hold item 0 and score -inf.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from recbole_tokenrec.errors import ConfigError

Pairs = "tuple[torch.Tensor, torch.Tensor]"


class ItemIndex:
    """Base class. A backend gives :meth:`_nearest` and :meth:`extended`, or its own :meth:`search`.

    Args:
        vectors: (n, d), any length; row 0 is the padding item.

    Attributes:
        size: n, the padding item included.
        dim: d.
    """

    def __init__(self, vectors: torch.Tensor):
        vectors = torch.as_tensor(vectors)
        if vectors.dim() != 2 or len(vectors) < 2:
            raise ConfigError(f"item vectors: shape {tuple(vectors.shape)} is not allowed; allowed: (n >= 2, d)")
        self.size, self.dim = vectors.shape

    def search(
        self,
        queries: torch.Tensor,
        k: int,
        exclude: Pairs | None = None,
        candidates: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``k`` items of the highest cosine for each query, best first.

        Args:
            queries: (B, d).
            exclude: pairs (rows (m,), items (m,)): item ``items[i]`` is not to be found for query ``rows[i]``.
            candidates: (c,) items among which to search, the same for all queries; None is all.

        Returns:
            items (B, k) int64 and cosines (B, k) float32, on the queries' device. Where fewer than k items may be
            found, the rest is item 0 with score -inf.
        """
        queries, candidates = self._checked(queries, k, candidates)
        normalised = F.normalize(queries.float(), dim=-1).cpu()
        most = self.size - 1 if candidates is None else len(candidates)
        if most and len(queries) and (exclude is None or not len(exclude[0])):
            found, scores = self._filled(*self._nearest(normalised, min(k, most), candidates), k)
            return found.to(queries.device), scores.to(queries.device)
        rows, items = _no_pairs() if exclude is None else (exclude[0].cpu(), exclude[1].cpu())
        banned = rows * self.size + items  # one number for each pair
        count = torch.bincount(rows, minlength=len(queries))
        found = torch.zeros(len(queries), k, dtype=torch.long)
        scores = torch.full((len(queries), k), -torch.inf)
        open_rows = torch.arange(len(queries))
        # What is excluded cannot be told to an approximate index row by row: it is asked for more, and again for
        # twice as much where too little is left. k + (number of exclusions) is always enough.
        fetch = min(k + min(int(count.max()) if len(count) else 0, max(k, 32)), most)
        while len(open_rows) and fetch > 0:
            got, score = self._nearest(normalised[open_rows], fetch, candidates)
            bad = (got <= 0) | torch.isin(open_rows.unsqueeze(1) * self.size + got, banned)
            order = torch.argsort(bad.int(), dim=1, stable=True)[:, :k]  # the allowed ones first, in their order
            got, score = got.gather(1, order), score.gather(1, order)
            bad = bad.gather(1, order)
            found[open_rows, : got.shape[1]] = got.masked_fill(bad, 0)
            scores[open_rows, : got.shape[1]] = score.masked_fill(bad, -torch.inf)
            left = (~bad).sum(dim=1) < k
            enough = (fetch >= k + count[open_rows]) | (fetch >= most)
            open_rows = open_rows[left & ~enough]
            fetch = min(2 * fetch, most)
        return found.to(queries.device), scores.to(queries.device)

    @staticmethod
    def _filled(items: torch.Tensor, scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``k`` columns, what was not found being item 0 with score -inf at the end."""
        none = items <= 0
        if none.any():
            items, scores = items.masked_fill(none, 0), scores.masked_fill(none, -torch.inf)
        if items.shape[1] < k:
            items = F.pad(items, (0, k - items.shape[1]))
            scores = F.pad(scores, (0, k - scores.shape[1]), value=-torch.inf)
        return items, scores

    def _nearest(self, queries: torch.Tensor, k: int, candidates) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit queries (B, d) -> items (B, k) and cosines (B, k), best first; items <= 0 mark what was not found."""
        raise NotImplementedError

    def extended(self, vectors: torch.Tensor) -> ItemIndex:
        """A new index with further items (m, d) behind the last one; this one stays as it is."""
        raise NotImplementedError

    def _checked(self, queries, k: int, candidates):
        """The arguments of a search in tensors, or a ConfigError."""
        queries = torch.as_tensor(queries)
        if queries.dim() != 2 or queries.shape[1] != self.dim:
            raise ConfigError(f"queries: shape {tuple(queries.shape)} is not allowed; allowed: (B, {self.dim})")
        if isinstance(k, bool) or int(k) != k or k < 1:
            raise ConfigError(f"k: {k!r} is not allowed; allowed: int in [1, inf)")
        if candidates is not None:
            candidates = torch.as_tensor(candidates, dtype=torch.long).unique()
            candidates = candidates[candidates != 0]
            if len(candidates) and not 0 < int(candidates.min()) <= int(candidates.max()) < self.size:
                raise ConfigError(f"candidates: items lie in [1, {self.size - 1}]")
        return queries, candidates

    def _checked_new(self, vectors) -> torch.Tensor:
        vectors = torch.as_tensor(vectors)
        if vectors.dim() != 2 or vectors.shape[1] != self.dim:
            raise ConfigError(f"item vectors: shape {tuple(vectors.shape)} is not allowed; allowed: (m, {self.dim})")
        return vectors


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """(n, d) on the CPU as float32 rows of length 1."""
    return F.normalize(vectors.detach().float().cpu(), dim=-1)


def _no_pairs():
    empty = torch.zeros(0, dtype=torch.long)
    return empty, empty
