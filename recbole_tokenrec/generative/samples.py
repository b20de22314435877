"""From RecBole's training batches of (user, item) to what a prompt may show: the user's items *before* that item.

All come from the training histories, in which no held-out interaction is, so that no sample can hold one.
"""

from __future__ import annotations

import torch

from recbole_tokenrec.histories import Histories


class TrainingSamples:
    """Looks up places in ``histories.items``, which lists all users' items one after the other."""

    def __init__(self, histories: Histories, n_items: int):
        self.histories, self.n_items = histories, n_items
        self.start = histories.indptr.tolist()
        self.items = histories.items.tolist()
        pairs = histories.rows() * n_items + histories.items
        self._pairs, self._order = pairs.sort()

    def places(self, users: torch.Tensor, items: torch.Tensor) -> list[int]:
        """Where each item (B,) stands in its user's (B,) history."""
        pairs = users.cpu() * self.n_items + items.cpu()
        return self._order[torch.searchsorted(self._pairs, pairs)].tolist()

    def before(self, user: int, place: int, most: int) -> list[int]:
        """The last ``most`` items of ``user`` before ``place``, oldest first."""
        return self.items[max(self.start[user], place - most) : place]

    def after(self, user: int, place: int, most: int) -> list[int]:
        """The item at ``place`` and those that ``user`` took next, ``most`` in all."""
        return self.items[place : min(self.start[user + 1], place + most)]

    def latest(self, user: int, most: int) -> list[int]:
        return self.before(user, self.start[user + 1], most)

    def others(self, user: int, item: int, most: int) -> list[int]:
        """The newest ``most`` training items of ``user`` but ``item``, oldest first."""
        kept = [other for other in self.latest(user, most + 1) if other != item]
        return kept[-most:]

    def segment(self, user: int, place: int, most: int) -> tuple[list[int], int]:
        """POD's sequential sample: a random stretch of the history, at most ``most`` items, and the place after it.

        The stretch ends before ``place``; for the first item of a history, which nothing precedes, at a random
        place. An empty stretch means that the user has one item only.
        """
        first = self.start[user]
        if place == first:
            room = self.start[user + 1] - first - 1
            if room < 1:
                return [], place
            place = first + 1 + int(torch.randint(room, (1,)))
        length = 1 + int(torch.randint(min(most, place - first), (1,)))
        return self.items[place - length : place], place

    def untaken(self, users: torch.Tensor, number: int) -> torch.Tensor:
        """(B, number) random items that the users (B,) have not taken in training; they may repeat."""
        users = users.cpu().unsqueeze(1).expand(-1, number)
        drawn = torch.randint(1, self.n_items, users.shape)
        for _ in range(20):  # a user who took nearly all items keeps some of them
            pairs = users * self.n_items + drawn
            at = torch.searchsorted(self._pairs, pairs).clamp_max(len(self._pairs) - 1)
            taken = self._pairs[at] == pairs
            if not taken.any():
                break
            drawn = torch.where(taken, torch.randint(1, self.n_items, users.shape), drawn)
        return drawn
