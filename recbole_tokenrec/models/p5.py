"""P5 with item indexing (Geng et al., RecSys 2022; Hua et al., SIGIR-AP 2023), and CID.

Recommendation as text: the prompt names the user and, in the sequential task, his items, the answer is an item's ID.
Beside its own embedding each token has one of its *whole word*, which tells which tokens are of one entity.

``P5``
    ``item_indexing: rid | sid | cid``, tasks *sequential* and *straightforward*.
``CID``
    P5 with collaborative indexing and the sequential task only.

Differences from the authors' code (OpenP5): the best epoch by validation is kept, not the last; one reading of a
prompt teaches several of the user's next items (``targets_per_prompt``), in a random template of a random task, where
theirs reads three templates of each task for each item; items are written in fewer tokens (``prompt_style``); beam
scores are not divided by the length; the catalogue's IDs are generated only (as theirs), and what the user took in
training is left out in the search itself.
"""

from __future__ import annotations

import torch

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.generative.recommender import GenerativeRecommender
from recbole_tokenrec.generative.templates import NUM_SEEN, SEQUENTIAL, STRAIGHTFORWARD, TEMPLATES, all_texts
from recbole_tokenrec.generative.words import PromptBatch, fill
from recbole_tokenrec.options import Option


class P5(GenerativeRecommender):
    """See the module's docstring.

    Raises:
        ConfigError: a key of properties/model/P5.yaml has a wrong value.
    """

    options = {
        **GenerativeRecommender.options,
        "tasks": Option(list, choices=(SEQUENTIAL, STRAIGHTFORWARD), distinct=True),
        "prompts_per_sample": Option(int, low=1),
        "prompt": Option(str, choices=("seen", "unseen")),
    }

    def __init__(self, config, dataset):
        super().__init__(config, dataset, all_texts())
        self.tasks, self.prompts_per_sample = list(config["tasks"]), config["prompts_per_sample"]
        self.evaluation_template = NUM_SEEN if config["prompt"] == "unseen" else 0
        self.whole_word = self.whole_word_table()

    def prompt(self, task: str, template: int, user: int, items: list[int]) -> tuple[list[int], list[int]]:
        """Token ids and whole-word ids of one prompt."""
        names = [self.item_names[item] for item in items]
        return self.words.whole_words(
            fill(TEMPLATES[task][template], user=self.user_names[user], items=self.style.listed(names))
        )

    def embed(self, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.backbone.get_input_embeddings()(batch.input_ids)  # (B, T, width)
        return tokens + self.whole_word(batch.marks), batch.attention_mask

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Mean over the tasks of the loss of their samples; a task is drawn for each sample of the batch."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        drawn, losses = torch.randint(len(self.tasks), users.shape), []
        for number, task in enumerate(self.tasks):
            chosen = drawn == number
            prompts, targets = self.training_prompts(task, users[chosen], items[chosen])
            if prompts:
                losses.append(self.target_loss(self.collate(prompts), targets))
        return sum(losses) / len(losses) if losses else self.nothing()

    def training_prompts(self, task: str, users: torch.Tensor, items: torch.Tensor):
        """Prompts of the pairs (B,), each in ``prompts_per_sample`` templates, and the items that answer each.

        The sequential task has no sample for the first item of a user.
        """
        prompts, targets = [], []
        places = self.samples.places(users, items)
        templates = torch.randint(NUM_SEEN, (len(places), self.prompts_per_sample)).tolist()
        for user, place, drawn in zip(users.tolist(), places, templates):
            history = self.samples.before(user, place, self.max_history) if task == SEQUENTIAL else []
            if task == SEQUENTIAL and not history:
                continue
            prompts += [self.prompt(task, template, user, history) for template in drawn]
            targets += [self.samples.after(user, place, self.targets_per_prompt)] * len(drawn)
        return prompts, targets

    def evaluation_prompt(self, user: int) -> tuple[list[int], list[int]]:
        """Sequential, if that task was learnt and the user has a history; straightforward otherwise."""
        history = self.samples.latest(user, self.max_history)
        task = SEQUENTIAL if SEQUENTIAL in self.tasks and (history or len(self.tasks) == 1) else STRAIGHTFORWARD
        return self.prompt(task, self.evaluation_template, user, history)


class CID(P5):
    """P5 with collaborative indexing and the sequential task.

    Raises:
        ConfigError: ``item_indexing`` or ``tasks`` say otherwise; that is P5.
    """

    @classmethod
    def check_config(cls, config) -> None:
        super().check_config(config)
        for key, only in (("item_indexing", "cid"), ("tasks", [SEQUENTIAL])):
            if config[key] != only:
                raise ConfigError(f"{key}: {config[key]!r} is not allowed; allowed: {only} (for others take P5)")
