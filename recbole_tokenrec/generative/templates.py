"""P5's prompt templates for the two tasks of ID-only data, ten seen in training and an eleventh unseen; our wording.

Every slot and every mark stands between blanks, see :mod:`.words`. The text to be generated is the item's ID.

``prompt_style`` says how items are written. *printed* is OpenP5's text, ``item_1001 , item_1042``; a from-scratch
tokenizer reads it sign by sign. *compact* is the first P5's, ``1001 1042``, with numbers in pairs of digits: less than
half as many tokens that say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SEQUENTIAL, STRAIGHTFORWARD = "sequential", "straightforward"

TEMPLATES = {
    SEQUENTIAL: (
        "{user} has taken {items} , in this order . What does the user take next ?",
        "After {items} , which item comes next for {user} ?",
        "These are the choices of {user} so far : {items} . Predict the following one .",
        "Knowing that {user} went through {items} , name the next item .",
        "{user} picked {items} one after the other . The next pick is",
        "The record of {user} reads {items} . How does it go on ?",
        "Continue this list of {user} by one item : {items} .",
        "First to last , {user} chose {items} . What follows ?",
        "Given the past of {user} , {items} , what will be chosen now ?",
        "We saw {user} with {items} . Which item do we see next ?",
        "Having finished {items} , {user} is likely to turn to",
    ),
    STRAIGHTFORWARD: (
        "What should be recommended to {user} ?",
        "Recommend an item to {user} .",
        "Which item suits {user} ?",
        "Find something that {user} will like .",
        "Choose an item for {user} .",
        "Name one item of interest to {user} .",
        "{user} looks for a new item . Suggest one .",
        "What would {user} enjoy ?",
        "Pick the best item for {user} from the catalogue .",
        "Tell {user} what to take .",
        "Help {user} to decide on an item .",
    ),
}
NUM_SEEN = 10

COMPACT, PRINTED = "compact", "printed"


class Style(NamedTuple):
    """How entities are written: what stands before an item's ID and between the items of a list, and how a from-scratch
    tokenizer cuts a word (``whole`` and ``digits`` of :func:`.backbone.word_level_tokenizer`)."""

    prefix: str
    mark: str
    whole: tuple[str, ...]
    digits: int

    def listed(self, names: Sequence[str]) -> list[str]:
        """The words of a list of items."""
        return [part for name in names for part in (self.mark, name)][1:] if self.mark else list(names)


STYLES = {COMPACT: Style("", "", ("user_",), 2), PRINTED: Style("item_", ",", (), 1)}

# What entities are written with, for a from-scratch tokenizer.
ENTITY_WORDS = " ".join(["user_ item_ ,", *map(str, range(10)), *(f"{n:02}" for n in range(100))])


def all_texts() -> list[str]:
    """Every text of P5's prompts, for a from-scratch tokenizer."""
    slots = {"user": "user_", "items": "item_"}
    return [ENTITY_WORDS, *(text.format(**slots) for texts in TEMPLATES.values() for text in texts)]
