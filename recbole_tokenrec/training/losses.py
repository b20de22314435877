"""Losses of the collaborative and the LLM4Rec stage. All of them score by cosine, as retrieval does (Eq. 19)."""

from __future__ import annotations

from typing import NamedTuple

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


class Teacher(NamedTuple):
    """Whose opinion, softmax(users items^T) over what is not masked, takes a part of the targets' mass.

    Attributes:
        users: (B, d); items: (C, d), over the same items as the loss.
        weight: share of each user's target mass, in [0, 1].
    """

    users: torch.Tensor
    items: torch.Tensor
    weight: float


def softmax_cosine_loss(
    user_vectors: torch.Tensor,
    item_vectors: torch.Tensor,
    rows: torch.Tensor,
    items: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
    masked: tuple[torch.Tensor, torch.Tensor] | None = None,
    teacher: Teacher | None = None,
    low_precision: bool = False,
    candidates: Candidates | None = None,
    block: int | None = None,
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
        teacher: see :class:`Teacher`; its items are the candidates, if there are such.
        low_precision: matrix products in bfloat16; sums, exponentials and the loss stay in fp32.
        candidates: which items to score; every item in ``items`` must be one. None: all.
        block: scores that are held at once; None: what suits the device. The result does not depend on it.
    """
    weights = torch.ones_like(rows, dtype=torch.float) if weights is None else weights
    log_weight = None
    if candidates is not None:
        item_vectors, log_weight = item_vectors[candidates.items], candidates.log_weight
        items = candidates.column[items]
        masked = None if masked is None else candidates.pairs(*masked)
    block = block or _BLOCK.get(user_vectors.device.type, 2**27)
    return _SoftmaxCrossEntropy.apply(
        F.normalize(user_vectors.float(), dim=-1) / temperature,
        F.normalize(item_vectors.float(), dim=-1),
        rows,
        items,
        weights / weights.sum(),
        masked,
        teacher,
        low_precision,
        log_weight,
        max(1, block // len(item_vectors)),
    )


_BLOCK = {"cpu": 2**19}  # two megabytes, which stay in the processor's cache from one operation to the next


class _SoftmaxCrossEntropy(torch.autograd.Function):
    """sum_p w_p (logsumexp(s_row(p)) - s_p) and its gradient, computed in one pass over blocks of rows of the scores.

    Autograd would keep the scores, the log-softmax and their gradients, three (B, n_items) matrices, and page them in
    anew at every step; a catalogue of 12,000 items then spends longer in memory than in arithmetic.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(ctx, users, item_vectors, rows, items, weights, masked, teacher, low_precision, log_weight, size):
        in_products = torch.Tensor.bfloat16 if low_precision else torch.Tensor.float
        left, right = in_products(users), in_products(item_vectors)
        if teacher is not None:
            asked, known = in_products(teacher.users), in_products(teacher.items).T
        needs_items, share = ctx.needs_input_grad[1], 0.0 if teacher is None else teacher.weight
        mass = torch.zeros(len(users), device=users.device).index_add_(0, rows, weights)  # (B,)
        loss, user_slope = torch.zeros((), device=users.device), torch.empty_like(users)
        item_slope = torch.zeros_like(item_vectors) if needs_items else None
        hidden = None if masked is None else _by_block(masked[0], size, len(users))
        for number, pair in enumerate(_by_block(rows, size, len(users))):
            start = number * size
            part = slice(start, start + size)
            scores = (left[part] @ right.T).float()  # (b, n_items), or (b, C) of the candidates
            at, item, weight, its = rows[pair] - start, items[pair], weights[pair], mass[part]
            shown = None if hidden is None else (masked[0][hidden[number]] - start, masked[1][hidden[number]])
            hit = (1 - share) * (scores[at, item] * weight).sum()
            if teacher is not None:
                opinion = _masked((asked[part] @ known).float(), log_weight, shown).softmax(dim=-1)
                hit = hit + share * (its * (opinion * scores).sum(dim=1)).sum()
            _masked(scores, log_weight, shown)
            top = scores.amax(dim=1, keepdim=True)
            scores.sub_(top).exp_()
            total = scores.sum(dim=1, keepdim=True)
            loss += (its * (top + total.log()).squeeze(1)).sum() - hit
            scores.mul_((its / total.squeeze(1)).unsqueeze(1))  # d loss / d scores, the part of the logsumexp
            scores.index_put_((at, item), (share - 1) * weight, accumulate=True)
            if teacher is not None:
                scores.addcmul_(opinion, its.unsqueeze(1), value=-share)
            slope = scores.bfloat16() if low_precision else scores
            user_slope[part] = slope @ right
            if needs_items:
                item_slope += slope.T @ left[part]
        ctx.slopes = user_slope, item_slope
        return loss

    @staticmethod
    def backward(ctx, grad):
        users, items = ctx.slopes
        return (users * grad, None if items is None else items * grad, *[None] * 8)


def _masked(scores: torch.Tensor, log_weight, shown) -> torch.Tensor:
    """Scores (b, C) with the candidates' weights, and -inf where nothing is to be retrieved; changed in place."""
    if log_weight is None:
        scores[:, 0] = -torch.inf
    else:
        scores.add_(log_weight)
    if shown is not None:
        scores[shown] = -torch.inf
    return scores


def _by_block(rows: torch.Tensor, size: int, number: int) -> tuple[torch.Tensor, ...]:
    """For each block of ``size`` out of ``number`` rows, which of ``rows`` (n,) lie in it."""
    blocks = -(-number // size)
    if blocks == 1:
        return (torch.arange(len(rows), device=rows.device),)
    block = rows // size
    in_order = bool((block.diff() >= 0).all())
    order = torch.arange(len(rows), device=rows.device) if in_order else block.argsort(stable=True)
    return order.split(block.bincount(minlength=blocks).tolist())


def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than fp32: GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return True
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supports and supports())
