"""SASRec (Kang and McAuley, 2018) trained by cross-entropy over all items at every position of a window.

The layers are those of RecBole's SASRec, whose checkpoints' ``state_dict`` loads into this model and gives the same
scores; ``sequence.py`` says what differs in training and evaluation. Cross-entropy and dropout 0.2 in place of one
sampled negative and 0.5 are what recent comparisons found decisive (see RecBole's issue 1289).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from recbole_tokenrec.models.sequence import SequenceModel
from recbole_tokenrec.training.loaders import HISTORY


class SASRecCE(SequenceModel):
    """See the module's docstring."""

    window_overlap = 1  # the last item of a window is a target only; the next window begins with it

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.apply(self._init_weights)

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Mean cross-entropy of the next item over all positions of B windows."""
        history = interaction[HISTORY]
        before, after = history[:, :-1], history[:, 1:]
        states = self.states(before, causal=True)
        return F.cross_entropy(self.item_scores(states[after > 0]), after[after > 0])

    def last_states(self, users):
        history, number = self.histories.latest(users.cpu(), self.max_length)
        if history.shape[1] == 0:  # none of them has a history
            history = torch.zeros(len(users), 1, dtype=torch.long)
        states = self.states(history.to(users.device), causal=True)
        last = (number - 1).clamp_min(0).to(users.device)
        return states[torch.arange(len(users), device=users.device), last]

    def item_scores(self, states):
        return states @ self.item_embedding.weight.T
