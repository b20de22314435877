"""Losses of the collaborative and the LLM4Rec stage. All of them score by cosine, as retrieval does (Eq. 19)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Eq. 19 for paired rows: (B, d), (B, d) -> (B,)."""
    return F.cosine_similarity(a, b, dim=-1)


def pairwise_cosine_loss(
    z: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float
) -> torch.Tensor:
    """Eq. 20 with one negative for each positive: mean of 1 - sim(z, q+) + max(0, sim(z, q-) - margin).

    Args:
        z, positive, negative: (B, d).
        margin: gamma, in [0, 0.2] in the paper.
    """
    return (1 - cosine(z, positive) + (cosine(z, negative) - margin).clamp_min(0)).mean()


def softmax_cosine_loss(
    user_vectors: torch.Tensor,
    item_vectors: torch.Tensor,
    rows: torch.Tensor,
    items: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy over all items of cosine / temperature, many positive items per encoded user.

    The scores of a user are computed once for all his positives. Item 0, the padding, takes no part.

    Args:
        user_vectors: (B, d).
        item_vectors: (n_items, d), row 0 is the padding item.
        rows: (P,) for each positive pair the row of ``user_vectors``.
        items: (P,) its item, never 0.
        temperature: the smaller, the more the hardest negatives count.
        weights: (P,) weight of each pair; their sum is divided out. None: all alike.
    """
    users = F.normalize(user_vectors, dim=-1)
    logits = users @ F.normalize(item_vectors, dim=-1)[1:].T / temperature  # (B, n_items - 1)
    losses = logits.logsumexp(dim=-1)[rows] - logits[rows, items - 1]  # (P,)
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
