"""BERT4Rec (Sun et al., 2019): a bidirectional transformer that fills in masked items, trained by cross-entropy.

The layers are those of RecBole's BERT4Rec; ``sequence.py`` says what differs in training and evaluation. As there,
``ft_ratio`` of the windows mask their last item alone, which is what evaluation asks; in the others each item is masked
with probability ``mask_ratio``, and at least one is.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.models.sequence import SequenceModel
from recbole_tokenrec.options import Option
from recbole_tokenrec.training.loaders import HISTORY, HISTORY_LENGTH


class BERT4RecCE(SequenceModel):
    """See the module's docstring. The mask token is row ``n_items`` of the item table."""

    extra_items = 1
    options = {
        **SequenceModel.options,
        **dict.fromkeys(("mask_ratio", "ft_ratio"), Option(float, low=0, high=1)),
    }

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size = config["hidden_size"]
        self.mask_ratio, self.last_ratio = config["mask_ratio"], config["ft_ratio"]
        self.output_ffn = nn.Linear(size, size)
        self.output_ln = nn.LayerNorm(size, eps=config["layer_norm_eps"])
        self.output_bias = nn.Parameter(torch.zeros(self.n_items))
        self.apply(self._init_weights)

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Mean cross-entropy of the masked items of B windows."""
        history, number = interaction[HISTORY], interaction[HISTORY_LENGTH]
        masked = self.masked_places(history, number)
        states = self.states(history.masked_fill(masked, self.n_items), causal=False)
        return F.cross_entropy(self.item_scores(states[masked]), history[masked])

    def masked_places(self, history: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """(B, M) True where an item is hidden; drawn anew at every call."""
        draw = torch.rand(history.shape, device=history.device).masked_fill(history == 0, 2.0)
        masked = draw < self.mask_ratio
        masked |= draw == draw.amin(dim=1, keepdim=True)
        last = torch.arange(history.shape[1], device=history.device) == (number - 1).unsqueeze(1)
        only_last = torch.rand(len(history), 1, device=history.device) < self.last_ratio
        return torch.where(only_last, last, masked)

    def last_states(self, users):
        history, number = self.histories.latest(users.cpu(), self.max_length - 1)
        asked = torch.cat([history, torch.zeros(len(users), 1, dtype=torch.long)], dim=1)
        rows = torch.arange(len(users))
        asked[rows, number] = self.n_items
        return self.states(asked.to(users.device), causal=False)[rows, number]

    def item_scores(self, states):
        states = self.output_ln(F.gelu(self.output_ffn(states)))
        return states @ self.item_embedding.weight[: self.n_items].T + self.output_bias
