"""Trainings that end without an error and are broken all the same: what to look at, and when to say something.

:func:`examine` measures a trained model and returns the ``health`` of its row in the result file: figures, and
``findings``, a sentence for each of

- codewords that no user or item has, and codebooks that say (nearly) the same of everybody;
- entities that share their whole code with another;
- user vectors that point (nearly) all one way, so that everybody gets the same list;
- scores that are (nearly) constant over the items, or not finite, so that the ranking is chance.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch.nn import functional as F

from recbole_tokenrec.tokenizers import code_statistics

SAMPLE = 256  # users whose scores and vectors are looked at

# Limits below or above which there is a finding.
LEAST_USE = 0.5  # share of the codewords in use, of those that could be
LEAST_PERPLEXITY = 1.5
LEAST_UNIQUE = 0.5
MOST_COSINE = 0.99
LEAST_RANK = 1.5
LEAST_SPREAD = 1e-4
MOST_TIED = 0.5


@torch.no_grad()
def examine(trainer, data) -> dict:
    """Figures of ``trainer.model`` on some users of the evaluation loader ``data``, and what they mean."""
    model = trainer.model.eval()
    figures, findings = {}, []
    if hasattr(model, "user_codes"):
        figures["codes"] = {}
        for who, codes in (("user", model.user_codes), ("item", model.item_codes)):
            size = model.settings.mq_codebook_size
            figures["codes"][who] = code_figures(codes, size)
            findings += code_findings(who, figures["codes"][who], size)
    users = _some_users(data, model)
    if users is not None and hasattr(model, "encode_users"):
        figures["user_vectors"] = vector_figures(model.encode_users(users[model.USER_ID]))
        findings += vector_findings(figures["user_vectors"])
    scores = None if users is None else _scores(model, users)
    if scores is not None:
        figures["scores"] = score_figures(scores)
        findings += score_findings(figures["scores"])
    return {"findings": findings, **figures}


def _some_users(data, model):
    """An interaction of at most SAMPLE users, as the evaluation asks; None if not all items are ranked."""
    if not isinstance(data, FullSortEvalDataLoader):
        return None
    interaction = next(iter(data))[0]
    return interaction[: min(SAMPLE, len(interaction))].to(model.device)


def _scores(model, users):
    """(B, n_items - 1), the padding item left out; None from a model that scores pairs alone."""
    try:
        return model.full_sort_predict(users).view(len(users), -1)[:, 1:].float()
    except NotImplementedError:
        return None


# ---- codes ---------------------------------------------------------------------------------------------------------


def code_figures(codes: torch.Tensor, codebook_size: int) -> dict:
    """Of codes (n, K), row 0 aside: ``entities``, and what ``code_statistics`` says."""
    return {"entities": len(codes) - 1, **code_statistics(codes, codebook_size)}


def code_findings(who: str, figures: dict, codebook_size: int) -> list[str]:
    found = []
    possible = min(1.0, figures["entities"] / codebook_size)
    for number, (use, perplexity) in enumerate(zip(figures["codebook_use"], figures["perplexity"]), 1):
        if perplexity < LEAST_PERPLEXITY:
            best = f"at best {codebook_size}"
            found.append(f"{who} codebook {number} says nearly nothing: perplexity {perplexity:.2f}, {best}")
        elif use / possible < LEAST_USE:
            of_all = f"{use:.0%} of its {codebook_size} codewords are in use"
            found.append(f"{who} codebook {number} is mostly dead: {of_all}")
    if figures["unique_share"] < LEAST_UNIQUE:
        found.append(
            f"{who}s cannot be told apart: {figures['unique_share']:.0%} have a code that nobody else has; "
            "raise mq_num_codebooks or mq_codebook_size"
        )
    return found


# ---- user vectors --------------------------------------------------------------------------------------------------


def vector_figures(vectors: torch.Tensor) -> dict:
    """Of vectors (n, d): mean cosine of two different ones, and the effective rank of their directions.

    The effective rank is the participation ratio (sum of variances)^2 / sum of squared variances of the principal
    components, 0 where there is no variance.
    """
    directions = F.normalize(vectors.double(), dim=-1)
    n = len(directions)
    mean_cosine = float((directions.sum(dim=0).pow(2).sum() - n) / max(n * (n - 1), 1))
    variances = torch.linalg.svdvals(directions - directions.mean(dim=0)).pow(2)
    total = float(variances.sum())
    # Rounding leaves some variance where there is none.
    rank = total**2 / float(variances.pow(2).sum()) if total > 1e-10 * n else 0.0
    return {"mean_cosine": mean_cosine, "effective_rank": rank}


def vector_findings(figures: dict) -> list[str]:
    if figures["mean_cosine"] > MOST_COSINE or figures["effective_rank"] < LEAST_RANK:
        return [
            f"user vectors have collapsed: mean cosine {figures['mean_cosine']:.4f}, effective rank "
            f"{figures['effective_rank']:.1f}; lower llm_learning_rate"
        ]
    return []


# ---- scores --------------------------------------------------------------------------------------------------------


def score_figures(scores: torch.Tensor) -> dict:
    """Of scores (B, n_items).

    ``spread``: median over users of (standard deviation over items / largest magnitude); ``tied``: share of users
    whose ten best items include two of equal score; ``not_finite``: share of scores.
    """
    finite = torch.isfinite(scores)
    clean = torch.where(finite, scores, torch.zeros_like(scores))
    magnitude = clean.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    best = clean.topk(min(10, clean.shape[1]), dim=1).values
    return {
        "spread": float(np.median((clean.std(dim=1) / magnitude).cpu().numpy())),
        "tied": float((best[:, 1:] == best[:, :-1]).any(dim=1).float().mean()),
        "not_finite": float((~finite).float().mean()),
    }


def score_findings(figures: dict) -> list[str]:
    found = []
    if figures["not_finite"] > 0:
        found.append(f"{figures['not_finite']:.1%} of the scores are not finite")
    if figures["spread"] < LEAST_SPREAD:
        found.append(f"scores are nearly constant over the items: relative spread {figures['spread']:.1e}")
    elif figures["tied"] > MOST_TIED:
        found.append(f"{figures['tied']:.0%} of the users have equal scores among their ten best items")
    return found
