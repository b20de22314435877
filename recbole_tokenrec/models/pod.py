"""POD, prompt distillation (Li et al., CIKM 2023), written from the paper.

A task is told to the model by a few free vectors, put in front of the encoder's inputs, instead of by a sentence. In
training a prompt is worded in a random way, among them the bare list of IDs, so that what the sentences say is
distilled into the vectors; at evaluation only the bare form is used, and inputs are short.

Tasks alternate batch by batch: *sequential* (a stretch of the user's items -> the next ones) and *top-N* (the user
and candidate items -> those he took, at most a quarter of them). The paper's third task, explanation, needs review
texts. Whole-word embeddings as P5's, but only users and items have one.

Differences from the authors' code: beams are held to the catalogue's IDs (``constrained: False`` is their plain beam
search; what is no item then scores -inf, where theirs takes a random item), padding is left out of the loss, 20
candidates instead of 100 and several targets of a prompt instead of one, item IDs without the leak of P5's first
numbering, RecBole's early stopping on NDCG.
"""

from __future__ import annotations

import torch
from torch import nn

from recbole_tokenrec.generative.recommender import GenerativeRecommender
from recbole_tokenrec.generative.templates import ENTITY_WORDS, SEQUENTIAL, TEMPLATES
from recbole_tokenrec.generative.words import PromptBatch, fill
from recbole_tokenrec.options import Option

TOP_N = "top_n"
BARE = "{user} {items}"
WORDINGS = {
    SEQUENTIAL: (BARE, *TEMPLATES[SEQUENTIAL][:10]),
    TOP_N: (
        BARE,
        "Which of these items suits {user} best ? {items}",
        "Choose for {user} among {items} .",
        "{items} : which one will {user} take ?",
        "Pick the item to recommend to {user} from {items} .",
        "From the candidates {items} , find the one that {user} will like .",
    ),
}
TASKS = (SEQUENTIAL, TOP_N)


class POD(GenerativeRecommender):
    """See the module's docstring.

    Attributes:
        task_prompts: (2 * prompt_length, width), the continuous prompts of ``TASKS``.
        turn: batches trained so far; its parity says whose turn it is.

    Raises:
        ConfigError: a key of properties/model/POD.yaml has a wrong value.
    """

    options = {
        **GenerativeRecommender.options,
        "prompt_length": Option(int, low=1),
        "num_candidates": Option(int, low=2),
        "constrained": Option(bool),
    }

    def __init__(self, config, dataset):
        slots = {"user": "user_", "items": "item_"}
        texts = [wording.format(**slots) for task in TASKS for wording in WORDINGS[task]]
        super().__init__(config, dataset, [ENTITY_WORDS, *texts])
        self.prompt_length, self.num_candidates = config["prompt_length"], config["num_candidates"]
        self.constrained = config["constrained"]
        width = self.backbone.config.d_model
        self.whole_word = self.whole_word_table()
        self.task_prompts = nn.Embedding(len(TASKS) * self.prompt_length, width)
        nn.init.uniform_(self.task_prompts.weight, -0.1, 0.1)
        self.turn, self._task = 0, SEQUENTIAL

    def prompt(self, task: str, wording: int, user: int, items: list[int]) -> tuple[list[int], list[int]]:
        """Token ids and whole-word ids; the bare form lists items without marks between them."""
        names = [self.item_names[item] for item in items]
        words = self.style.listed(names) if wording else names
        return self.words.entities(fill(WORDINGS[task][wording], user=self.user_names[user], items=words))

    def embed(self, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The current task's vectors, then the text: (B, prompt_length + T, width)."""
        tokens = self.backbone.get_input_embeddings()(batch.input_ids)  # (B, T, width)
        spans = self.whole_word(batch.marks) * (batch.marks > 0).unsqueeze(-1)
        first = TASKS.index(self._task) * self.prompt_length
        vectors = self.task_prompts.weight[first : first + self.prompt_length].expand(len(tokens), -1, -1)
        mask = torch.nn.functional.pad(batch.attention_mask, (self.prompt_length, 0), value=1)
        return torch.cat([vectors, tokens + spans], dim=1), mask

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Cross-entropy of the targets in the task whose turn it is."""
        self._task = TASKS[self.turn % len(TASKS)]
        self.turn += 1
        prompts, targets = self.training_prompts(interaction[self.USER_ID], interaction[self.ITEM_ID])
        loss = self.target_loss(self.collate(prompts), targets) if prompts else self.nothing()
        self._task = SEQUENTIAL
        return loss

    def training_prompts(self, users: torch.Tensor, items: torch.Tensor):
        """Prompts of the current task for the pairs (B,), and the items that answer each."""
        task, prompts, targets = self._task, [], []
        places = self.samples.places(users, items)
        wordings = torch.randint(len(WORDINGS[task]), (len(places),)).tolist()
        others = self.samples.untaken(users, self.num_candidates - 1).tolist()
        for user, place, wording, untaken in zip(users.tolist(), places, wordings, others):
            if task == SEQUENTIAL:
                listing, place = self.samples.segment(user, place, self.max_history)
                answers = self.samples.after(user, place, self.targets_per_prompt)
            else:
                most = max(1, self.num_candidates // 4)
                answers = self.samples.after(user, place, min(self.targets_per_prompt, most))
                listing = answers + untaken[: self.num_candidates - len(answers)]
                listing = [listing[at] for at in torch.randperm(len(listing)).tolist()]
            if listing:
                prompts.append(self.prompt(task, wording, user, listing))
                targets.append(answers)
        return prompts, targets

    def evaluation_prompt(self, user: int) -> tuple[list[int], list[int]]:
        return self.prompt(SEQUENTIAL, 0, user, self.samples.latest(user, self.max_history))
