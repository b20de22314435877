"""P5's prompt templates for the two tasks of ID-only data, ten seen in training and an eleventh unseen; our wording.

Every slot and every mark stands between blanks, see :mod:`.words`. The text to be generated is the item's ID.
"""

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

ENTITY_PREFIXES = ("user_", "item_")
# What entities are written with; the items of a list stand side by side, their prefix tells them apart.
ENTITY_WORDS = " ".join([*ENTITY_PREFIXES, *map(str, range(10)), *(f"{n:02}" for n in range(100))])


def all_texts() -> list[str]:
    """Every text of P5's prompts, for a from-scratch tokenizer."""
    slots = {"user": "user_", "items": "item_"}
    return [ENTITY_WORDS, *(text.format(**slots) for texts in TEMPLATES.values() for text in texts)]
