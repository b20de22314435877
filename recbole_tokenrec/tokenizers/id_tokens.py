"""Entities and their ID tokens: Eq. 7, the names ``<u1-5>`` / ``<v3-98>``, and how well the tokens tell entities apart.

Row 0 of every code table belongs to RecBole's padding entity: it is kept at 0 and left out of every statistic.
"""

from __future__ import annotations

import numpy as np
import torch

USER_LETTER = "u"
ITEM_LETTER = "v"


def token_names(letter: str, num_codebooks: int, codebook_size: int) -> list[str]:
    """The K x L out-of-vocabulary tokens, codebook by codebook: ``<u1-0>``, ``<u1-1>``, …, ``<uK-(L-1)>``.

    The paper numbers codebooks from 1 and codewords from 0 to L-1 (its examples stay within that range).
    """
    return [f"<{letter}{k + 1}-{w}>" for k in range(num_codebooks) for w in range(codebook_size)]


def entity_tokens(letter: str, codes) -> list[str]:
    """Codes (K,) of one entity -> its token names."""
    return [f"<{letter}{k + 1}-{int(w)}>" for k, w in enumerate(codes)]


def code_statistics(codes: torch.Tensor, codebook_size: int) -> dict[str, float | list[float]]:
    """How well codes (n, K) use the codebooks; row 0, the padding entity, is ignored.

    Returns:
        ``unique_share``: share of entities whose code tuple nobody else has; ``codebook_use``: share of the
        codewords in use, per codebook; ``perplexity``: exp(entropy) of each codebook's use (at most L).
    """
    real = codes[1:].cpu().numpy()
    _, inverse, counts = np.unique(real, axis=0, return_inverse=True, return_counts=True)
    use, perplexity = [], []
    for column in real.T:
        share = np.bincount(column, minlength=codebook_size) / max(len(column), 1)
        use.append(float((share > 0).mean()))
        share = share[share > 0]
        perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
    return {
        "unique_share": float((counts[inverse.ravel()] == 1).mean()) if len(real) else 0.0,
        "codebook_use": use,
        "perplexity": perplexity,
    }
