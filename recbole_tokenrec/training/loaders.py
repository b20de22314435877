"""What each stage iterates over. Every loader yields RecBole ``Interaction`` s, has a length, and draws its random
numbers from a generator made of (seed, stage, epoch): an epoch is the same whether or not earlier ones were run in
this process, which is what caching and resuming need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.histories import Histories, take

HISTORY, HISTORY_LENGTH, TARGETS, TARGET_LENGTH = "history", "history_length", "targets", "target_length"
TEMPLATE, ENTITY = "template", "entity"


def derived_seed(seed: int, *names) -> int:
    """A 63-bit seed for one purpose, e.g. ``derived_seed(2020, "llm", epoch)``."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_for(seed: int, *names) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, *names))


class PairsByUser:
    """All training pairs of a batch of users: for the softmax over all items, whose cost is per user.

    Yields ``{user_id: (P,), item_id: (P,)}``; the users of a batch are drawn anew in each epoch.
    """

    def __init__(self, histories: Histories, batch_size: int, user_field: str, item_field: str):
        self.histories = histories
        self.batch_size = batch_size
        self.fields = user_field, item_field
        self.users = histories.counts().nonzero().squeeze(1)

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        order = self.users[torch.randperm(len(self.users), generator=generator)]
        for users in order.split(self.batch_size):
            number = self.histories.counts()[users]
            items = take(self.histories.items, self.histories.indptr[users], number)
            valid = torch.arange(items.shape[1]) < number.unsqueeze(1)
            rows = torch.repeat_interleave(users, number)
            yield Interaction({self.fields[0]: rows, self.fields[1]: items[valid]})


class Entities:
    """Ids 1 … n-1 of users or items in random order: ``{entity: (B,)}``."""

    def __init__(self, ids: torch.Tensor, batch_size: int):
        self.ids = ids
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        order = self.ids[torch.randperm(len(self.ids), generator=generator)]
        for ids in order.split(self.batch_size):
            yield Interaction({ENTITY: ids})


class PromptsByUser:
    """Users with a random part of their history as targets and the rest as the prompt's history (design decision 5).

    Yields ``{user_id (B,), history (B, M), history_length (B,), targets (B, T), target_length (B,), template (B,)}``.
    A batch has one template and users of similar history length, so that little is padding.

    Args:
        histories: training histories.
        batch_size: users per batch.
        user_field: RecBole's name of the user id.
        target_ratio: share of a user's items that become targets (at least one item).
        max_targets, max_history: limits per user.
        num_templates: templates 0 … num_templates - 1 are drawn.
        sequential: targets follow the visible items in time: a random cut, the items before it (most recent ones)
            visible in time order, the next ones the targets.
        history: False leaves the history out; all items may then be targets.
    """

    def __init__(
        self,
        histories: Histories,
        batch_size: int,
        user_field: str,
        target_ratio: float,
        max_targets: int,
        max_history: int,
        num_templates: int,
        sequential: bool,
        history: bool,
    ):
        self.histories = histories
        self.batch_size = batch_size
        self.user_field = user_field
        self.target_ratio = target_ratio
        self.max_targets = max_targets
        self.max_history = max_history if history else 0
        self.num_templates = num_templates
        self.sequential = sequential
        self.history = history
        self.users = histories.counts().nonzero().squeeze(1)

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        count = self.histories.counts()[self.users]
        share = self.target_ratio if self.history else 1.0
        targets = (count * share).round().long().clamp_min(1).clamp_max(self.max_targets)
        if self.sequential:
            items = self.histories.items
            last_cut = count - 1  # at least one target after the cut
            cut = 1 + (torch.rand(len(count), generator=generator) * last_cut).floor().long()
            cut = torch.minimum(cut, last_cut)
            visible = cut.clamp_max(self.max_history)
            first_target = self.histories.indptr[self.users] + cut
            first_visible = first_target - visible
            targets = torch.minimum(targets, count - cut)
        else:
            items = self.histories.shuffled(generator)
            visible = (count - targets).clamp_max(self.max_history)
            first_target = self.histories.indptr[self.users]
            first_visible = first_target + targets
        for chosen in self._batches(visible, generator):
            number, wanted = visible[chosen], targets[chosen]
            template = torch.randint(self.num_templates, (1,), generator=generator).expand(len(chosen))
            yield Interaction(
                {
                    self.user_field: self.users[chosen],
                    HISTORY: take(items, first_visible[chosen], number),
                    HISTORY_LENGTH: number,
                    TARGETS: take(items, first_target[chosen], wanted),
                    TARGET_LENGTH: wanted,
                    TEMPLATE: template,
                }
            )

    def _batches(self, length: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """Rows grouped by similar length: sorted with a random tie-break, cut into batches, batches shuffled.

        Lengths are blurred by up to a fifth, so that the same users do not meet in every epoch.
        """
        blur = 0.9 + 0.2 * torch.rand(len(length), generator=generator)
        batches = torch.argsort((length + 1) * blur).split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
