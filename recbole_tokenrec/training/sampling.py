"""The softmax over a part of a large catalogue: the batch's targets, and items drawn uniformly for all the others.

With S drawn out of the R items that are no target, the sum over the drawn ones times R / S is an unbiased estimate of
the sum over all R, whatever the scores: that factor is :attr:`Candidates.log_weight`, added to the scores where they
are summed. The loss is the logarithm of such a sum, and so is a little low, by about half the sum's relative variance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Candidates(NamedTuple):
    """The items that one step scores.

    Attributes:
        items: (C,) distinct, never 0.
        log_weight: (C,) logarithm of how many items each stands for: 0 for the batch's targets.
        column: (n_items,) where in ``items`` each item of the catalogue stands, or -1.
    """

    items: torch.Tensor
    log_weight: torch.Tensor
    column: torch.Tensor

    def pairs(self, rows: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the pairs (n,), (n,) those whose item is a candidate: their rows and columns (m,)."""
        column = self.column[items]
        return rows[column >= 0], column[column >= 0]


def draw_candidates(targets: torch.Tensor, n_items: int, most: int) -> Candidates | None:
    """The candidates of a step, or None for all items: in catalogues of at most ``most`` items.

    Args:
        targets: (P,) the items that the batch's users are to be taught.
        n_items: size of the catalogue, the padding item 0 included.
        most: about how many items to draw. Those drawn twice count once.
    """
    if n_items - 1 <= most:
        return None
    device = targets.device
    column = torch.full((n_items,), -1, device=device)
    targets = targets.unique()
    column[targets] = torch.arange(len(targets), device=device)
    drawn = torch.randint(1, n_items, (most,), device=device).unique()
    drawn = drawn[column[drawn] < 0]
    column[drawn] = torch.arange(len(targets), len(targets) + len(drawn), device=device)
    log_weight = torch.zeros(len(targets) + len(drawn), device=device)
    if len(drawn):
        log_weight[len(targets) :] = math.log((n_items - 1 - len(targets)) / len(drawn))
    return Candidates(torch.cat([targets, drawn]), log_weight, column)
