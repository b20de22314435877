"""Where an epoch cuts the histories: one prompt before each cut, several targets after it.

Reading a prompt costs far more than writing an ID of a few tokens, so that one reading serves the next
``targets_per_prompt`` items. A user of n items is cut about n / ``targets_per_prompt`` times, evenly, from a random
place on. 1 is one prompt for each interaction; with more, the first items of a history are targets less often than the
later ones (a history of 8 and 32 targets: the first in one epoch of nine, the last in all), as evaluation asks for what
comes last.
"""

from __future__ import annotations

import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.histories import Histories


class Cuts:
    """One epoch's batches in the form of RecBole's training loader: ``{user_id: (B,), item_id: (B,)}``, the item being
    the first after the cut. A batch has prompts and targets of similar number, so that little of it is padding.

    Args:
        histories: training histories.
        batch_size: prompts of a batch.
        targets: items after a cut.
        max_history: items that a prompt lists.
        fields: RecBole's names of user and item id.
        generator: of the epoch's random numbers.
    """

    shuffle = False  # RecBole's loop would reseed a sampler otherwise

    def __init__(
        self,
        histories: Histories,
        batch_size: int,
        targets: int,
        max_history: int,
        fields: tuple[str, str],
        generator: torch.Generator,
    ):
        self.histories, self.batch_size = histories, batch_size
        self.targets, self.max_history = targets, max_history
        self.fields, self.generator = fields, generator
        count = histories.counts()
        number = (count.double() / targets).round().long().clamp_min(1).minimum(count)  # (n_users,) cuts of each
        self.users = torch.repeat_interleave(torch.arange(len(count)), number)  # (C,)
        self._turn = torch.arange(len(self.users)) - (number.cumsum(0) - number)[self.users]
        self._step = (count.double() / number)[self.users]

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def places(self) -> torch.Tensor:
        """(C,) new random cuts: how many of the user's items stand before each."""
        start = torch.rand(self.histories.n_users, generator=self.generator, dtype=torch.float64)
        return ((self._turn + start[self.users]) * self._step).long()

    def __iter__(self):
        before = self.places()
        after = (self.histories.counts()[self.users] - before).clamp_max(self.targets)
        blur = 0.9 + 0.2 * torch.rand(len(before), generator=self.generator)  # other company in every epoch
        order = torch.argsort((before.clamp_max(self.max_history) + after) * blur)
        batches = order.split(self.batch_size)
        user_field, item_field = self.fields
        for number in torch.randperm(len(batches), generator=self.generator).tolist():
            rows = batches[number]
            users = self.users[rows]
            items = self.histories.items[self.histories.indptr[users] + before[rows]]
            yield Interaction({user_field: users, item_field: items})
