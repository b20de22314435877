"""Prompts as words: token ids, and for each token the whole word it belongs to.

A prompt is a list of words, and a word is tokenized once in a run. That equals tokenizing the joined text, since no
token of T5's or of our word-level tokenizer spans a blank (a test compares them), so every entity and every mark of
the templates stands between blanks, as in P5's.

The second number of each token is its *mark*. For P5 it is the whole-word id: all tokens of one word share it, it
rises with each word, and is 0 for EOS. For POD only entities have one; for CoLLM it names the entity itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

MAX_MARK = 511  # the size of P5's whole-word table, less one; longer prompts share the last id

Prompt = tuple  # (token ids, marks), two lists of one length


class PromptBatch(NamedTuple):
    """``input_ids``, ``marks``, ``attention_mask``: (B, T) int64, padded with 0 marks on the right."""

    input_ids: torch.Tensor
    marks: torch.Tensor
    attention_mask: torch.Tensor


class WordEncoder:
    """Words -> tokens, for one tokenizer. ``entities`` are the words that name a user or an item."""

    def __init__(self, tokenizer, entities: Iterable[str] = ()):
        self.tokenizer = tokenizer
        self.names = frozenset(entities)
        self.eos_id, self.pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        self._known: dict[str, list[int]] = {}

    def tokens(self, word: str) -> list[int]:
        """Token ids of one word, without EOS."""
        known = self._known.get(word)
        if known is None:
            known = self._known[word] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return known

    def whole_words(self, words: Iterable[str]) -> Prompt:
        """Marks 1, 2, 3 … count words (P5)."""
        ids, marks = [], []
        for count, word in enumerate(words, start=1):
            tokens = self.tokens(word)
            ids += tokens
            marks += [min(count, MAX_MARK)] * len(tokens)
        return [*ids, self.eos_id], [*marks, 0]

    def entities(self, words: Iterable[str]) -> Prompt:
        """Marks 1, 2, 3 … count users and items, other words have 0 (POD)."""
        ids, marks, count = [], [], 0
        for word in words:
            tokens = self.tokens(word)
            mark = 0
            if word in self.names:
                count += 1
                mark = min(count, MAX_MARK)
            ids += tokens
            marks += [mark] * len(tokens)
        return [*ids, self.eos_id], [*marks, 0]

    def collate(self, prompts: Sequence[Prompt], device="cpu") -> PromptBatch:
        width = max(len(ids) for ids, _ in prompts)
        ids = [ids + [self.pad_id] * (width - len(ids)) for ids, _ in prompts]
        marks = [marks + [0] * (width - len(marks)) for _, marks in prompts]
        length = torch.tensor([len(ids) for ids, _ in prompts])
        mask = torch.arange(width) < length.unsqueeze(1)
        return PromptBatch(
            torch.tensor(ids, device=device), torch.tensor(marks, device=device), mask.long().to(device)
        )


def fill(template: str, **slots: Sequence[str] | str) -> list[str]:
    """The words of ``template``; the word ``{name}`` is replaced by the word or the words of that slot."""
    words: list[str] = []
    for word in template.split():
        slot = slots[word[1:-1]] if word.startswith("{") else word
        words += [slot] if isinstance(slot, str) else slot
    return words
