"""Who took what, in time order: the users' training histories as one pair of arrays (CSR).

A history is made from the *training* data set that RecBole hands to the model, so that validation and test items are
not in reach of anything that reads histories. Only :meth:`Histories.extended` adds interactions, for
``history_at_test: train_valid``, at evaluation; what reads them then is a model's ``reading``.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_tokenrec.errors import ConfigError


class Histories:
    """Items of each user, oldest first, each item once (its last occurrence counts).

    Attributes:
        indptr: (n_users + 1,) int64; the items of user u are ``items[indptr[u]:indptr[u + 1]]``.
        items: (n,) int64.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int):
        """``users``, ``items``: (n,) interactions, for each user in time order."""
        order = np.argsort(users, kind="stable")
        users, items = users[order], items[order]
        pairs = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
        _, last = np.unique(pairs[::-1], return_index=True)  # first of the reversed = last of the original
        keep = np.sort(len(pairs) - 1 - last)
        users, items = users[keep], items[keep]
        self.n_users = n_users
        self.indptr = torch.from_numpy(np.searchsorted(users, np.arange(n_users + 1)).astype(np.int64))
        self.items = torch.from_numpy(items.astype(np.int64))

    @classmethod
    def from_dataset(cls, dataset) -> Histories:
        """From a RecBole data set after its split, i.e. with tensors in ``inter_feat``; a snapshot has them made."""
        known = getattr(dataset, "histories", None)
        if isinstance(known, cls):
            return known
        features = dataset.inter_feat
        users = features[dataset.uid_field].numpy()
        items = features[dataset.iid_field].numpy()
        if dataset.time_field in features:
            order = np.argsort(features[dataset.time_field].numpy(), kind="stable")
            users, items = users[order], items[order]
        return cls(users, items, dataset.user_num)

    def extended(self, users: np.ndarray, items: np.ndarray) -> Histories:
        """A copy with later interactions (n,) at the end of each user's history."""
        return Histories(
            np.concatenate([self.rows().numpy(), users]), np.concatenate([self.items.numpy(), items]), self.n_users
        )

    def known_at(self, eval_data) -> Histories:
        """These and what else RecBole masks as history in ``eval_data``: the validation items for the test set.

        Raises:
            ConfigError: ``eval_data`` does not rank all items, and masks nothing.
        """
        if not isinstance(eval_data, FullSortEvalDataLoader):
            raise ConfigError("history_at_test: 'train_valid' needs full-sort evaluation, eval_args: {mode: full}")
        users, items = [], []
        for user in eval_data.uid_list.tolist():
            known = set(self.of_user(user).tolist())
            later = [item for item in eval_data.uid2history_item[user].tolist() if item not in known]
            users += [user] * len(later)
            items += later
        return self.extended(np.array(users, dtype=np.int64), np.array(items, dtype=np.int64))

    def of_user(self, user: int) -> torch.Tensor:
        """Items of one user, oldest first."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def counts(self) -> torch.Tensor:
        """(n_users,) number of items of each user."""
        return self.indptr.diff()

    def counts_of(self, users: torch.Tensor) -> torch.Tensor:
        """(B,) number of items of ``users`` (B,), whatever the number of all users."""
        return self.indptr[users + 1] - self.indptr[users]

    def rows(self) -> torch.Tensor:
        """(n,) the user of each entry of ``items``."""
        return torch.repeat_interleave(torch.arange(self.n_users), self.counts())

    def ages(self) -> torch.Tensor:
        """(n,) for each entry of ``items`` how many newer items its user has: 0 for the newest."""
        return self.indptr[1:][self.rows()] - 1 - torch.arange(len(self.items))

    def ranks(self, keys: torch.Tensor) -> torch.Tensor:
        """(n,) rank of each entry's ``keys`` (n,), in [0, 1), among those of its user: 0 for the smallest."""
        rows = self.rows()
        order = torch.argsort(rows.double() + keys)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order))
        return ranks - self.indptr[:-1][rows]

    def places(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all entries of ``users`` (B,): the row in ``users`` (n,), and the index into ``items`` (n,)."""
        number = self.counts_of(users)
        rows = torch.repeat_interleave(torch.arange(len(users)), number)
        first = number.cumsum(0) - number
        return rows, self.indptr[users][rows] + torch.arange(len(rows)) - first[rows]

    def latest(self, users: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The most recent items of ``users`` (B,): padded (B, M) with M <= ``most``, and their number (B,)."""
        number = self.counts_of(users).clamp_max(most)
        return take(self.items, self.indptr[users + 1] - number, number), number


def take(values: torch.Tensor, start: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """``values[start:start + number]`` for each row, padded with 0 to the longest. (B,), (B,) -> (B, max(number))"""
    width = int(number.max()) if len(number) else 0
    offsets = torch.arange(width)
    valid = offsets < number.unsqueeze(1)
    places = (start.unsqueeze(1) + offsets).masked_fill(~valid, 0)
    return values[places].masked_fill(~valid, 0) if len(values) else places
