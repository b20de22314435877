"""Which part of each user's history is asked for, and which part is shown: drawn anew in every epoch.

Both the collaborative stage (``cf_targets``) and the LLM4Rec stage learn to find one part of a history from another,
as evaluation will ask: the target is not in what a user's vector, tokens or prompt are made of. All functions return
two masks (n,) over ``histories.items``, never both true: the targets, and what is visible. ``share`` is the least and
the largest share of a user's items that become targets; at least one does, and one stays visible if the user has two.
A user with a single item has a target and nothing visible in :func:`random_part`, and neither in the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from recbole_tokenrec.histories import Histories

Parts = tuple[torch.Tensor, torch.Tensor]


def random_part(histories: Histories, share: tuple[float, float], generator: torch.Generator) -> Parts:
    """Random items as targets; all others are visible."""
    rows = histories.rows()
    rank = histories.ranks(torch.rand(len(rows), generator=generator, dtype=torch.float64))
    is_target = rank < _number_of_targets(histories, share, generator)[rows]
    return is_target, ~is_target


def next_part(histories: Histories, share: tuple[float, float], generator: torch.Generator) -> Parts:
    """The items right after a random cut in time as targets; what lies before it is visible, what comes later is not.

    Late cuts are likelier than early ones, by the square root: they look like what evaluation asks.
    """
    rows, count = histories.rows(), histories.counts()
    number = _number_of_targets(histories, share, generator)
    position = torch.arange(len(rows)) - histories.indptr[:-1][rows]
    last = (count - 1).clamp_min(0)
    cut = torch.minimum(1 + (torch.rand(len(count), generator=generator).sqrt() * last).floor().long(), last)
    usable = (count > 1)[rows]
    visible = usable & (position < cut[rows])
    return usable & ~visible & (position < (cut + number)[rows]), visible


def window_part(histories: Histories, most: int, generator: torch.Generator) -> Parts:
    """At most ``most`` items right after a random cut in time as targets, each to be asked for in its turn.

    For a decoder that reads the items of the window one after the other (``prompt_decoder_items``). Windows hold
    ``most`` items, or at least half of a shorter history; late cuts are likelier, as in :func:`next_part`.
    """
    rows, count = histories.rows(), histories.counts()
    position = torch.arange(len(rows)) - histories.indptr[:-1][rows]
    last = count - (count // 2).clamp_max(most)  # the latest cut
    cut = 1 + (torch.rand(len(count), generator=generator).sqrt() * last).floor().long()
    cut = torch.minimum(cut, last.clamp_min(1))
    usable = (count > 1)[rows]
    visible = usable & (position < cut[rows])
    return usable & ~visible & (position < (cut + most)[rows]), visible


def without_some(histories: Histories, parts: Parts, share: float, generator: torch.Generator) -> Parts:
    """``parts`` as if each item but a user's first had not been taken with probability ``share``."""
    is_target, visible = parts
    rows = histories.rows()
    first = torch.arange(len(rows)) == histories.indptr[:-1][rows]
    kept = (torch.rand(len(rows), generator=generator) >= share) | first
    return is_target & kept, visible & kept


class InTurn(NamedTuple):
    """P targets of several users, asked for one after the other; each but the first of a user knows those before it.

    Attributes:
        rows: (P,) the user's row; ``places`` (P,) the target's place among those of its row, from 0.
        known: numbers (n,) in [0, P) of targets and items (n,): what is known already when that target is asked for.
        known_ages: (n,) how many newer items are known then.
    """

    rows: torch.Tensor
    places: torch.Tensor
    known: tuple[torch.Tensor, torch.Tensor]
    known_ages: torch.Tensor

    def ahead(self, items: torch.Tensor, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For each target the next ``horizon`` items (P,) of its row, itself first: numbers (m,) and items (m,)."""
        steps = torch.arange(horizon, device=items.device)
        end = torch.bincount(self.rows).cumsum(0)[self.rows]  # (P,)
        at = torch.arange(len(items), device=items.device).unsqueeze(1) + steps  # (P, horizon)
        inside = at < end.unsqueeze(1)
        return inside.nonzero()[:, 0], items[at[inside]]


def in_turn(rows: torch.Tensor, items: torch.Tensor, shown_rows: torch.Tensor, shown_items: torch.Tensor) -> InTurn:
    """See :class:`InTurn`.

    Args:
        rows, items: (P,) the targets, grouped by row and in time order.
        shown_rows, shown_items: (V,) what lies before them, likewise.
    """
    device = rows.device
    together = torch.cat([shown_rows, rows])
    order = torch.argsort(together, stable=True)  # each row's items in time order, the shown ones first
    history = torch.cat([shown_items, items])[order]
    count = torch.bincount(together)
    targets = torch.bincount(rows, minlength=len(count))
    places = torch.arange(len(rows), device=device) - (targets.cumsum(0) - targets)[rows]
    number = (count - targets)[rows] + places  # (P,) known before each target
    asked = torch.repeat_interleave(number)
    within = torch.arange(len(asked), device=device) - (number.cumsum(0) - number)[asked]
    known = history[(count.cumsum(0) - count)[rows][asked] + within]
    return InTurn(rows, places, (asked, known), number[asked] - 1 - within)


def _number_of_targets(histories: Histories, share: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
    """(n_users,)"""
    count = histories.counts()
    low, high = share
    drawn = low + (high - low) * torch.rand(len(count), generator=generator)
    return torch.minimum((drawn * count).round().long().clamp_min(1), (count - 1).clamp_min(1))
