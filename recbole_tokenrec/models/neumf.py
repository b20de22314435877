"""Full sort for RecBole's NeuMF, which scores one pair of user and item at a time.

RecBole lacks the method and falls back on ``predict`` for every pair: 270 million rows of gathered and concatenated
embeddings for each validation of Amazon's Beauty. The first layer is linear in that concatenation, so that its two
halves are computed once for each user and once for each item and added; what is left are the later layers. The scores
are those of ``predict`` up to rounding. ``compat.py`` gives the method to RecBole's class; nothing else of it changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_BLOCK = 2**19  # numbers in the first hidden layer at a time, 2 MiB: what a cache holds


def full_sort_predict(self, interaction) -> torch.Tensor:
    """Probabilities of all items, for each user of ``interaction``; (users * items,), as RecBole flattens them."""
    user = interaction[self.USER_ID]
    weight, scores = self.predict_layer.weight[0], self.predict_layer.bias
    if self.mf_train:
        weighted = self.user_mf_embedding(user) * weight[: self.mf_embedding_size]
        scores = scores + weighted @ self.item_mf_embedding.weight.T  # (users, items)
        weight = weight[self.mf_embedding_size :]
    if self.mlp_train:
        scores = scores + _by_layers(self, user, weight)
    return torch.sigmoid(scores).flatten()


def _by_layers(model, user: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the layers add to the logits, (users, items)."""
    dropout, first, *later = model.mlp_layers.mlp_layers
    width = model.mlp_embedding_size
    of_users = F.linear(dropout(model.user_mlp_embedding(user)), first.weight[:, :width], first.bias)
    of_items = F.linear(dropout(model.item_mlp_embedding.weight), first.weight[:, width:])
    parts = []
    for users in of_users.split(max(1, _BLOCK // of_items.numel())):
        hidden = users[:, None] + of_items  # (part of the users, items, width of the first layer)
        for layer in later:
            hidden = layer(hidden)
        parts.append(hidden @ weight)
    return torch.cat(parts)
