"""Prompts as tensors: Section 2.4.1, Eq. 15.

Eleven templates with the history and eleven with the user alone; ten are seen in training, the eleventh only by
``prompt: unseen``. The first of each list is the one printed in the paper, the others are our own wording.

A template's words are tokenized once. A prompt for any user is then put together by copying blocks of ids: head,
user codes, link, items (codes and separators), tail. ``PromptBuilder`` finds those blocks by tokenizing a rendered
example and looking where its ID tokens landed, so that the result equals the tokenizer's output on the full string
(a test compares the two), without formatting a string per user.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.tokenizers.id_tokens import ITEM_LETTER, USER_LETTER, entity_tokens

HISTORY_TEMPLATES = (
    "According to what items the {user} has interacted with: {items}. Can you describe the user's preferences?",
    "Here is what {user} picked so far: {items}. Which item would suit this user next?",
    "The list of things that {user} enjoyed reads {items}. Name something of the same taste.",
    "Given that {user} chose {items}, work out what else this user may want.",
    "{user} has a history of {items}. Think of an item that belongs on this shelf.",
    "All of these were taken by {user}: {items}. What should be offered now?",
    "Somebody known as {user} liked {items}. Suggest a new item to this person.",
    "We recorded these choices of {user}: {items}. Predict another choice.",
    "If {user} already owns {items}, which item is still missing?",
    "Summarise the taste of {user} from {items}, then find further items.",
    "Please recommend something fresh for {user}, whose past items are {items}.",
)
USER_TEMPLATES = (
    "I wonder what the {user} will like. Can you help me decide?",
    "Which item would suit {user} next?",
    "Name something of the taste of {user}.",
    "Work out what else {user} may want.",
    "Think of an item that belongs on the shelf of {user}.",
    "What should be offered to {user} now?",
    "Suggest a new item to somebody known as {user}.",
    "Predict another choice of {user}.",
    "For the person {user}, which item is still missing?",
    "Summarise the taste of {user} in order to find further items.",
    "Please recommend something fresh for {user}.",
)
NUM_SEEN = 10
PRINTED, COMPACT, POOLED = "printed", "compact", "pooled"


class Blocks(NamedTuple):
    """Token ids of one template around its ID tokens; ``link``, ``separator`` are empty without history."""

    head: torch.Tensor
    link: torch.Tensor
    separator: torch.Tensor
    tail: torch.Tensor


class Entities(NamedTuple):
    """Users or items that take one position each: ``at`` (B, T) bool, where; ``tokens`` (n, K), their ID tokens."""

    at: torch.Tensor
    tokens: torch.Tensor


class PromptBatch(NamedTuple):
    """``input_ids`` (B, T) int64 and ``attention_mask`` (B, T) int64, padded on the right.

    In the style ``pooled`` the ids at the positions of ``entities`` stand for nothing: see :class:`Entities`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    entities: tuple[Entities, ...] = ()


def all_texts() -> list[str]:
    """Every text a prompt may hold besides ID tokens, for a from-scratch tokenizer."""
    bare = {"user": "user_", "items": "item_, item_"}
    return [template.format(**bare) for template in HISTORY_TEMPLATES + USER_TEMPLATES]


class PromptBuilder:
    """Puts prompts together for one tokenizer and one pair of code tables.

    Args:
        tokenizer: Hugging Face tokenizer that knows the ID tokens.
        user_ids, item_ids: (K, L) token ids of the ID tokens; users and items may differ in K.
        history: whether the prompt lists the user's items.
        style: ``printed`` as in the paper (``item_<v1-4>…, item_…``), or ``compact``: the items' tokens alone,
            one after the other, which saves the words between them; or ``pooled``: each user or item takes one
            position, at which the model reads the sum of its tokens' embeddings.
        max_tokens: the prompt's limit; histories are cut to the items that fit, never within an item.
    """

    def __init__(
        self,
        tokenizer,
        user_ids: torch.Tensor,
        item_ids: torch.Tensor,
        history: bool,
        style: str,
        max_tokens: int,
    ):
        self.tokenizer = tokenizer
        self.history = history
        self.style = style
        self.max_tokens = max_tokens
        self.pad_id = tokenizer.pad_token_id
        self.user_table, self.item_table = user_ids, item_ids
        self.templates = HISTORY_TEMPLATES if history else USER_TEMPLATES
        self.blocks = [self._parse(template) for template in self.templates]
        shortest = max(self._shortest(blocks) for blocks in self.blocks)
        if shortest > max_tokens:
            raise ConfigError(
                f"prompt_max_tokens: {max_tokens} is not allowed; allowed: int in [{shortest}, inf), since the longest "
                f"template takes {shortest} tokens with the user's {self._positions()[0]}"
                + (f" and one item's {self._positions()[1]}" if history else "")
            )

    @property
    def num_templates(self) -> int:
        return len(self.templates)

    def render(self, template: int, user_codes, item_codes=()) -> str:
        """The prompt as a person reads it; ``user_codes`` (K,), ``item_codes`` (n, K)."""
        user = "user_" + "".join(entity_tokens(USER_LETTER, user_codes))
        prefix, separator = ("item_", ", ") if self.style == PRINTED else ("", "")
        items = separator.join(prefix + "".join(entity_tokens(ITEM_LETTER, codes)) for codes in item_codes)
        return self.templates[template].format(user=user, items=items)

    def _shortest(self, blocks: Blocks) -> int:
        """Tokens of a template with its user and, where it lists items, one of them."""
        head, link, _, tail = (len(block) for block in blocks)
        user, item = self._positions()
        return head + link + tail + user + (item if self.history else 0)

    def _positions(self) -> tuple[int, int]:
        """How many positions a user and an item take."""
        return (1, 1) if self.style == POOLED else (len(self.user_table), len(self.item_table))

    def capacity(self, template: int) -> int:
        """How many items fit beside the template's words and the user's tokens."""
        head, link, separator, tail = (len(block) for block in self.blocks[template])
        user, item = self._positions()
        room = self.max_tokens - head - link - tail - user + separator
        return max(room // (item + separator), 0) if self.history else 0

    def build(
        self,
        template: int,
        user_codes: torch.Tensor,
        item_codes: torch.Tensor | None = None,
        num_items: torch.Tensor | None = None,
    ) -> PromptBatch:
        """Prompts of one template for B users.

        Args:
            template: index into the templates.
            user_codes: (B, K) of the users.
            item_codes: (B, M, K) of the items, the first ``num_items`` of each row count. None without history.
            num_items: (B,) number of items of each user, at most :meth:`capacity`.
        """
        head, link, separator, tail = (block.to(user_codes.device) for block in self.blocks[template])
        batch, device = len(user_codes), user_codes.device
        pooled = self.style == POOLED
        users, items = _look_up(self.user_table, user_codes), None  # (B, K)
        parts = [head.expand(batch, -1), users[:, :1] if pooled else users, link.expand(batch, -1)]
        if item_codes is not None and item_codes.shape[1] > 0:
            all_items = _look_up(self.item_table, item_codes)  # (B, M, K)
            items = all_items[..., :1] if pooled else all_items
            spaced = separator.expand(batch, items.shape[1], -1)  # (B, M, s)
            parts.append(torch.cat([items, spaced], dim=2).flatten(1))  # (B, M * (K + s))
            step = items.shape[2] + len(separator)
            used = (num_items * step - len(separator)).clamp_min(0)  # (B,) no separator after the last item
        else:
            used = torch.zeros(batch, dtype=torch.long, device=device)
        start = sum(part.shape[1] for part in parts[:3])
        length = start + used + len(tail)  # (B,)
        ids = torch.cat([*parts, tail.expand(batch, -1)], dim=1)
        ends = start + used.unsqueeze(1) + torch.arange(len(tail), device=device)  # (B, t)
        ids = ids.scatter(1, ends, tail.expand(batch, -1))[:, : int(length.max())]
        mask = torch.arange(ids.shape[1], device=device) < length.unsqueeze(1)
        entities = ()
        if pooled:
            place = torch.arange(ids.shape[1], device=device).expand(batch, -1)
            entities = (Entities(place == len(head), users),)
            if items is not None:
                listed = torch.arange(items.shape[1], device=device) < num_items.unsqueeze(1)  # (B, M)
                at = (place >= start) & (place < start + num_items.unsqueeze(1))
                entities += (Entities(at, all_items[listed]),)
        return PromptBatch(ids.masked_fill(~mask, self.pad_id), mask.long(), entities)

    def items(self, item_codes: torch.Tensor, num_items: torch.Tensor) -> Entities:
        """Items outside of the prompt, one position each: codes (B, R, K), of which ``num_items`` (B,) count."""
        listed = torch.arange(item_codes.shape[1], device=item_codes.device) < num_items.unsqueeze(1)
        return Entities(listed, _look_up(self.item_table, item_codes[listed]))

    def _parse(self, template: str) -> Blocks:
        """Tokenize a rendered example and cut it where its ID tokens stand (the user before the items)."""
        index = self.templates.index(template)
        user, item = self.user_table[:, 0].tolist(), self.item_table[:, 0].tolist()
        example = [[0] * len(item)] * (2 if self.history else 0)
        ids = self.tokenizer(self.render(index, [0] * len(user), example))["input_ids"]
        at_user = _find(ids, user)
        head, rest = ids[:at_user], ids[at_user + len(user) :]
        if not self.history:
            return Blocks(*(torch.tensor(block, dtype=torch.long) for block in (head, [], [], rest)))
        first = _find(ids, item)
        second = _find(ids, item, first + len(item))
        separator = ids[first + len(item) : second]
        blocks = (head, ids[at_user + len(user) : first], separator, ids[second + len(item) :])
        return Blocks(*(torch.tensor(block, dtype=torch.long) for block in blocks))


def _find(ids: list[int], pattern: list[int], start: int = 0) -> int:
    for at in range(start, len(ids) - len(pattern) + 1):
        if ids[at : at + len(pattern)] == pattern:
            return at
    raise ConfigError(
        f"the tokenizer splits the ID tokens {pattern}: they must be whole tokens of its vocabulary"
    )


def _look_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Token ids of codes: table (K, L), codes (…, K) -> (…, K)."""
    return table.to(codes.device)[torch.arange(len(table), device=codes.device), codes]
