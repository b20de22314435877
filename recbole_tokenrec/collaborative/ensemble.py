"""Several collaborative models side by side: ``cf_targets: [next, all]``.

Models that were asked different questions, or the same one from other random starts, err in different places. Their
vectors stand side by side, each of length 1 and times the root of its model's weight: the cosine of two such vectors
is the weighted mean of the members' cosines. Weights are chosen on validation (``WeightsStage``).

Members are trained one after the other; at their validations the others' weights are 0.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class CollaborativeEnsemble(nn.Module):
    """``members`` and their ``weights`` (M,), which sum to 1.

    Attributes:
        in_training: number of the member whose loss :meth:`calculate_loss` returns.
    """

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mix = Mix(len(members))
        self.in_training = 0

    def calculate_loss(self, interaction) -> torch.Tensor:
        return self.members[self.in_training].calculate_loss(interaction)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Users (n_users, M d) and items (n_items, M d)."""
        tables = [member.forward() if weight else _nothing(member) for member, weight in self._weighed()]
        users, items = zip(*tables)
        return self.joined(users), self.joined(items)

    def fold_in(self, rows: torch.Tensor, items: torch.Tensor, ages: torch.Tensor, n_rows: int) -> torch.Tensor:
        """Users known by their items alone (n_rows, M d); arguments as those of the members."""
        return self.joined([member.fold_in(rows, items, ages, n_rows) for member in self.members])

    def joined(self, blocks) -> torch.Tensor:
        """Each member's vectors (n, d), of any length, as one table (n, M d)."""
        return torch.cat([F.normalize(block, dim=-1) * w.sqrt() for block, w in zip(blocks, self.mix.weights)], dim=1)

    def _weighed(self):
        return zip(self.members, self.mix.weights.tolist())


class Mix(nn.Module):
    """The members' ``weights`` (M,), a module of their own: they are what ``WeightsStage`` chooses."""

    def __init__(self, number: int):
        super().__init__()
        self.weights = nn.Parameter(torch.full((number,), 1 / number), requires_grad=False)

    def set(self, weights: list[float]) -> None:
        with torch.no_grad():
            self.weights.copy_(torch.tensor(weights))

    def only(self, member: int) -> None:
        """Listen to one member alone."""
        self.set([float(number == member) for number in range(len(self.weights))])


def members_of(collaborative) -> list[nn.Module]:
    """The models that a collaborative stage trains."""
    return list(collaborative.members) if isinstance(collaborative, CollaborativeEnsemble) else [collaborative]


def weightings(number: int) -> list[list[float]]:
    """What is tried on validation: quarters, none of them 0; equal weights alone for more than three members.

    More choices would fit the validation users, and equal weights are never far from the best. An eighth is better for
    the collaborative stage where one of two questions suits the data badly, but TokenRec ends no better by it.
    """
    if number > 3:
        return [[1 / number] * number]
    parts = [[1, 1], [1, 3], [3, 1]] if number == 2 else [[1, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 2]]
    return [[part / sum(row) for part in row] for row in parts]


def _nothing(member) -> tuple[torch.Tensor, torch.Tensor]:
    table = member.item_embedding.weight
    return table.new_zeros(member.n_users, table.shape[1]), torch.zeros_like(table)
