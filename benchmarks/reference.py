"""The reference mode: the shape of the authors' released code around the very same language model.

What it does as that code did, and what TokenRec here does instead:

    prompts are strings, formatted per user and tokenized by the Hugging Face tokenizer    tensors of ids
    every prompt is padded to 512 tokens                                                   to its batch's longest
    the decoder runs 20 positions, of which the first is read                              1 position
    one positive (and one negative) item an encoded user, Eq. 20                           all held-out items
    torch's dropout, transformers' attention by explicit score matrices    llm/dropout.py, llm/cross_attention.py

The backbone, its weights and the projection are shared or copied, so that a ratio says what the way of using them
costs. The released code's faults (history truncated within an item, no straight-through gradient) are not copied.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.llm.cross_attention import ask_as_transformers
from recbole_tokenrec.llm.dropout import Dropout
from recbole_tokenrec.llm.prompts import NUM_SEEN
from recbole_tokenrec.training.losses import pairwise_cosine_loss

PROMPT_TOKENS, DECODER_TOKENS = 512, 20


class Reference:
    """Trains and scores a TokenRec model in the reference mode.

    Args:
        model: a :class:`~recbole_tokenrec.models.tokenrec.TokenRec` with codes and vectors; its LLM4Rec is copied.
            Its prompts must be words and ID tokens (``prompt_style: printed`` or ``compact``).
    """

    def __init__(self, model):
        self.model = model
        self.llm = copy.deepcopy(model.llm)
        for module in self.llm.modules():
            for name, child in module.named_children():
                if isinstance(child, Dropout):
                    setattr(module, name, nn.Dropout(child.p))
        ask_as_transformers(self.llm.backbone)
        self.llm.backbone.set_attn_implementation("eager")
        self.optimizer = None

    def encode(self, prompts: list[str], user_codes: torch.Tensor) -> torch.Tensor:
        """z (B, d) of B prompts in words."""
        tokens = self.model.tokenizer(
            prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt"
        )
        start = torch.full((len(prompts), DECODER_TOKENS), self.llm.start_id)
        hidden = self.llm.backbone(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            decoder_input_ids=start,
            use_cache=False,
        ).last_hidden_state  # (B, 20, width)
        z = self.llm.projection(hidden[:, 0])
        if self.model.settings.llm_residual:
            z = z + F.normalize(self.model.user_tokenizer.decode(user_codes), dim=-1)
        return z

    def train_step(self, users: torch.Tensor, items: torch.Tensor) -> None:
        """One AdamW step on pairs (B,), (B,): each prompt holds the user's other items, shuffled."""
        model, histories = self.model, self.model.histories
        self.llm.train()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.llm.parameters(), lr=1e-4)
        prompts = []
        for user, item in zip(users.tolist(), items.tolist()):
            others = histories.of_user(user)
            others = others[others != item][torch.randperm(len(others) - 1)]
            template = int(torch.randint(NUM_SEEN, (1,)))
            prompts.append(self._prompt(user, others, template))
        z = self.encode(prompts, model.user_codes[users])
        negatives = torch.randint(1, model.n_items, items.shape)
        loss = pairwise_cosine_loss(z, model.item_vectors[items], model.item_vectors[negatives], 0.1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def encode_users(self, users: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
        """z (B, d) at evaluation, from the items that ``model.encode_users`` lists."""
        model = self.model
        self.llm.eval()
        limit = model.history_limit(0)
        encoded = []
        for part in users.split(batch_size):
            prompts = []
            for user in part.tolist():
                items = model.evaluation_histories.of_user(user)
                prompts.append(self._prompt(user, items[max(len(items) - limit, 0) :], 0))
            encoded.append(self.encode(prompts, model.user_codes[part]))
        return torch.cat(encoded)

    def _prompt(self, user: int, items: torch.Tensor, template: int) -> str:
        codes = self.model.item_codes[items[: self.model.history_limit(template)]].tolist()
        return self.model.prompts.render(template, self.model.user_codes[user].tolist(), codes)


@torch.no_grad()
def top_items(z: torch.Tensor, item_vectors: torch.Tensor, k: int = 20) -> torch.Tensor:
    """The k nearest items (B, k) by cosine, the padding item left out."""
    scores = F.normalize(z, dim=-1) @ F.normalize(item_vectors, dim=-1).T
    return scores[:, 1:].topk(k).indices + 1
