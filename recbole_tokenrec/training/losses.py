"""Losses of the collaborative and the LLM4Rec stage. All of them score by cosine, as retrieval does (Eq. 19)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from recbole_tokenrec.training.sampling import Candidates


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
    masked: tuple[torch.Tensor, torch.Tensor] | None = None,
    teacher: torch.Tensor | None = None,
    teacher_weight: float = 0.0,
    low_precision: bool = False,
    candidates: Candidates | None = None,
) -> torch.Tensor:
    """Cross-entropy over all items of cosine / temperature, many positive items per encoded user.

    The scores of a user are computed once for all his positives. Item 0, the padding, takes no part.
    With ``candidates`` the sum over all items is estimated from them (``training/sampling.py``).

    Args:
        user_vectors: (B, d).
        item_vectors: (n_items, d), row 0 is the padding item.
        rows: (P,) for each positive pair the row of ``user_vectors``.
        items: (P,) its item, never 0.
        temperature: the smaller, the more the hardest negatives count.
        weights: (P,) weight of each pair; their sum is divided out. None: all alike.
        masked: rows (M,) and items (M,) that are neither positive nor negative, e.g. what the prompt shows.
        teacher: (B, n_items) probabilities over items that take ``teacher_weight`` of each user's target mass; over
            the C candidates if there are such.
        low_precision: matrix products in bfloat16; sums, exponentials and the loss stay in fp32.
        candidates: which items to score; every item in ``items`` must be one. None: all.
    """
    weights = torch.ones_like(rows, dtype=torch.float) if weights is None else weights
    log_weight = None
    if candidates is not None:
        item_vectors, log_weight = item_vectors[candidates.items], candidates.log_weight
        items = candidates.column[items]
        masked = None if masked is None else candidates.pairs(*masked)
    return _SoftmaxCrossEntropy.apply(
        F.normalize(user_vectors.float(), dim=-1) / temperature,
        F.normalize(item_vectors.float(), dim=-1),
        rows,
        items,
        weights / weights.sum(),
        masked,
        teacher,
        teacher_weight,
        low_precision,
        log_weight,
    )


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """sum_p w_p (logsumexp(s_row(p)) - s_p) and its gradient, computed in one pass over one (B, n_items) buffer.

    Autograd would keep the scores, the log-softmax and their gradients, three such matrices, and page them in anew
    at every step; a catalogue of 12,000 items then spends longer in memory than in arithmetic.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(
        ctx, users, item_vectors, rows, items, weights, masked, teacher, teacher_weight, low_precision, log_weight
    ):
        left, right = (users.bfloat16(), item_vectors.bfloat16()) if low_precision else (users, item_vectors)
        scores = (left @ right.T).float()  # (B, n_items), or (B, C) of the candidates
        if log_weight is None:
            scores[:, 0] = -torch.inf
        if masked is not None:
            scores[masked] = -torch.inf
        mass = torch.zeros(len(users), device=users.device).index_add_(0, rows, weights)  # (B,)
        hit = (scores[rows, items] * weights).sum()
        if teacher is not None:
            expected = (teacher * scores.masked_fill(scores == -torch.inf, 0)).sum(dim=1)  # (B,)
            hit = (1 - teacher_weight) * hit + teacher_weight * (mass * expected).sum()
        if log_weight is not None:
            scores.add_(log_weight)
        top = scores.amax(dim=1, keepdim=True)
        scores.sub_(top).exp_()
        total = scores.sum(dim=1, keepdim=True)
        loss = (mass * (top + total.log()).squeeze(1)).sum() - hit
        scores.mul_((mass / total.squeeze(1)).unsqueeze(1))  # d loss / d scores, the part of the logsumexp
        if teacher is None:
            scores.index_put_((rows, items), -weights, accumulate=True)
        else:
            scores.index_put_((rows, items), -(1 - teacher_weight) * weights, accumulate=True)
            scores.addcmul_(teacher, mass.unsqueeze(1), value=-teacher_weight)
        needs_items = ctx.needs_input_grad[1]
        slope = scores.bfloat16() if low_precision else scores
        ctx.gradients = (slope @ right).float(), (slope.T @ left).float() if needs_items else None
        return loss

    @staticmethod
    def backward(ctx, grad):
        users, items = ctx.gradients
        return (users * grad, None if items is None else items * grad, *[None] * 8)


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than fp32: GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return True
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supports and supports())
