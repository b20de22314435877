"""What each stage iterates over. Every loader yields RecBole ``Interaction`` s, has a length, and draws its random
numbers from a generator made of (seed, stage, epoch): an epoch is the same whether or not earlier ones were run in
this process, which is what caching and resuming need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.errors import DataError
from recbole_tokenrec.histories import Histories, take
from recbole_tokenrec.training.parts import Parts

AGE, VECTORS, TEMPLATE, USER_CODES = "age", "vectors", "template", "user_codes"
HISTORY, HISTORY_LENGTH = "history", "history_length"
TARGET_ROWS, TARGET_ITEMS = "target_rows", "target_items"
VISIBLE_ROWS, VISIBLE_ITEMS = "visible_rows", "visible_items"


def derived_seed(seed: int, *names) -> int:
    """A 63-bit seed for one purpose, e.g. ``derived_seed(2020, "llm", epoch)``."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_for(seed: int, *names) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, *names))


def users_with(histories: Histories, least: int) -> torch.Tensor:
    """Users (n,) of at least ``least`` training items.

    Raises:
        DataError: there is none.
    """
    users = (histories.counts() >= least).nonzero().squeeze(1)
    if not len(users):
        raise DataError(
            f"no user has {least} training interactions, which is the least to learn the next items from; set "
            "cf_targets: all (LightGCNSoftmax: targets: all), prompt_order: shuffled and prompt_decoder_items: 0"
        )
    return users


class PairsByUser:
    """All training pairs of a batch of users: for the softmax over all items, whose cost is per user.

    Yields ``{user_id: (P,), item_id: (P,), age: (P,)}``; age is how many newer items the user has. The users of a
    batch are drawn anew in each epoch.
    """

    def __init__(self, histories: Histories, batch_size: int, user_field: str, item_field: str):
        self.histories = histories
        self.batch_size = batch_size
        self.fields = user_field, item_field
        self.ages = histories.ages()
        self.users = histories.counts().nonzero().squeeze(1)

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        order = self.users[torch.randperm(len(self.users), generator=generator)]
        for users in order.split(self.batch_size):
            rows, places = self.histories.places(users)
            user_field, item_field = self.fields
            yield Interaction(
                {user_field: users[rows], item_field: self.histories.items[places], AGE: self.ages[places]}
            )


class HeldOutByUser:
    """A part of each user's history as targets, another as what his vector is made of: for ``cf_targets`` beside all.

    Yields, for B users with V visible items and P targets in all::

        user_id (B,)
        visible_rows (V,), visible_items (V,), age (V,)   age: how many newer items of the user are visible
        target_rows (P,), target_items (P,)
    """

    def __init__(
        self, histories: Histories, batch_size: int, user_field: str, parts: Callable[[torch.Generator], Parts]
    ):
        self.histories = histories
        self.batch_size = batch_size
        self.user_field = user_field
        self.parts = parts
        self.users = users_with(histories, 2)  # one item leaves nothing to make a vector of

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        histories, rows = self.histories, self.histories.rows()
        is_target, visible = self.parts(generator)
        age = torch.bincount(rows[visible], minlength=histories.n_users).cumsum(0)[rows] - visible.cumsum(0)
        for users in self.users[torch.randperm(len(self.users), generator=generator)].split(self.batch_size):
            row, places = histories.places(users)
            seen, asked = visible[places], is_target[places]
            yield Interaction(
                {
                    self.user_field: users,
                    VISIBLE_ROWS: row[seen],
                    VISIBLE_ITEMS: histories.items[places[seen]],
                    AGE: age[places[seen]],
                    TARGET_ROWS: row[asked],
                    TARGET_ITEMS: histories.items[places[asked]],
                }
            )


class Rows:
    """Rows of a matrix in random order: ``{vectors: (B, d)}``. A stage may change ``vectors`` (n, d) between epochs."""

    def __init__(self, vectors: torch.Tensor, batch_size: int):
        self.vectors = vectors
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.vectors) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        for rows in torch.randperm(len(self.vectors), generator=generator).split(self.batch_size):
            yield Interaction({VECTORS: self.vectors[rows.to(self.vectors.device)]})


class PromptsByUser:
    """Users with a random part of their history as targets and the rest visible (design decision 5).

    Yields, for B users with P targets and V visible items in all::

        user_id (B,), template (B,) all alike
        user_codes (B, K), vectors (B, d)       if ``users_of`` is given
        history (B, M), history_length (B,)     what the prompt lists: at most ``max_history`` of the visible items
        target_rows (P,), target_items (P,)     what is to be retrieved; rows count from 0 within the batch
        visible_rows (V,), visible_items (V,)   what is known already, and so neither positive nor negative

    A batch has one template and users whose prompts are of similar length, so that little of it is padding.

    Args:
        histories: training histories.
        batch_size: users per batch.
        user_field: RecBole's name of the user id.
        parts: draws the targets and the visible items of an epoch, see ``parts.py``.
        max_history: most items of a prompt, 0 for none.
        num_templates: templates 0 … num_templates - 1 are drawn.
        sequential: the prompt lists the newest visible items in order; otherwise random ones, shuffled.
        targets_read: the decoder reads the targets, so that their number is a length, too.
        users_of: from a mask (n,) over ``histories.items`` of what is visible to the codes (n_users, K) of all users
            and the vectors (n_users, d) that the codes stand for.
    """

    def __init__(
        self,
        histories: Histories,
        batch_size: int,
        user_field: str,
        parts: Callable[[torch.Generator], Parts],
        max_history: int,
        num_templates: int,
        sequential: bool = False,
        targets_read: bool = False,
        users_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
    ):
        self.histories = histories
        self.batch_size = batch_size
        self.user_field = user_field
        self.parts = parts
        self.max_history = max_history
        self.num_templates = num_templates
        self.sequential = sequential
        self.targets_read = targets_read
        self.users_of = users_of
        self.users = users_with(histories, 2 if sequential else 1)

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Interaction]:
        histories, rows = self.histories, self.histories.rows()
        is_target, visible = self.parts(generator)
        codes, vectors = (None, None) if self.users_of is None else self.users_of(visible)
        order = torch.arange(len(rows)) if self.sequential else torch.argsort(
            rows.double() + torch.rand(len(rows), generator=generator, dtype=torch.float64)
        )
        shown_order = order[visible[order]]  # visible entries, user by user
        shown = torch.bincount(rows[visible], minlength=histories.n_users)
        ends = shown.cumsum(0)
        number = shown.clamp_max(self.max_history)
        length = number
        if self.targets_read:  # these vary more than what the prompt lists, beside which the template's words count too
            length = number + 2 * torch.bincount(rows[is_target], minlength=histories.n_users)
        for users in self._batches(length, generator):
            batch = {
                self.user_field: users,
                TEMPLATE: torch.randint(self.num_templates, (1,), generator=generator).expand(len(users)),
                HISTORY: take(histories.items[shown_order], ends[users] - number[users], number[users]),
                HISTORY_LENGTH: number[users],
            }
            batch_rows, places = histories.places(users)
            for mask, row_field, item_field in (
                (is_target[places], TARGET_ROWS, TARGET_ITEMS),
                (visible[places], VISIBLE_ROWS, VISIBLE_ITEMS),
            ):
                batch[row_field], batch[item_field] = batch_rows[mask], histories.items[places[mask]]
            if codes is not None:
                batch[USER_CODES], batch[VECTORS] = codes[users], vectors[users]
            yield Interaction(batch)

    def _batches(self, length: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
        """Users grouped by similar length: sorted with a random tie-break, cut into batches, batches shuffled.

        Lengths are blurred by up to a tenth, so that the same users do not meet in every epoch.
        """
        blur = 0.9 + 0.2 * torch.rand(len(self.users), generator=generator)
        batches = self.users[torch.argsort((length[self.users] + 1) * blur)].split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
