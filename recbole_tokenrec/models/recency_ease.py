"""EASE whose users are weighted by the age of their interactions when they are scored: a plain rival that uses order.

The item-item matrix is EASE's own, B = I - P diag(1 / diag P) with P = (X'X + lambda I)^-1, fitted on the unweighted
training matrix X (Steck, 2019); a user's scores are x~ B with x~_j = (a_j + 1)^-recency, a_j the number of newer items
of the user. With ``recency: 0`` it is EASE. It stands in tables where TokenRec's preset uses order, since a table
without it would credit the language model with what a single exponent buys.
"""

from __future__ import annotations

import contextlib

import numpy as np
import scipy.sparse as sp
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from scipy.linalg import lapack
from torch.nn import functional as F

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.options import Option, WithOptions

_ROWS = 512  # mirrored at once


class RecencyEASE(WithOptions, GeneralRecommender):
    """See the module's docstring.

    Args (in ``config``): ``reg_weight`` (lambda > 0), ``recency`` (exponent >= 0).

    Cost: one n_items x n_items inverse, in place, of a positive definite matrix; n_items^2 x 4 bytes, and as much again
    for what RecBole's trainer keeps.
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL

    options = {"reg_weight": Option(float, low=1e-12), "recency": Option(float, low=0)}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_config(config)
        self.recency = config["recency"]
        self._read(histories := Histories.from_dataset(dataset))
        rows, items = histories.rows().numpy(), histories.items.numpy()
        shape = (self.n_users, self.n_items)
        seen = sp.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, items)), shape=shape)
        self.register_buffer("item_similarity", torch.from_numpy(_item_similarity(seen, config["reg_weight"])))
        self.dummy_param = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainer wants one

    def _read(self, histories: Histories) -> None:
        self.histories, self.weights = histories, (histories.ages().float() + 1.0) ** -self.recency

    @contextlib.contextmanager
    def reading(self, histories: Histories):
        """While it lasts, users have these histories; the item-item matrix stays."""
        kept = self.histories
        self._read(histories)
        try:
            yield
        finally:
            self._read(kept)

    def calculate_loss(self, interaction):
        return torch.zeros(1, requires_grad=True)  # fitted in closed form when built

    def _scores(self, users: torch.Tensor) -> torch.Tensor:
        rows, places = self.histories.places(users.cpu())
        number = torch.bincount(rows, minlength=len(users))
        taken, starts, weights = self.histories.items[places], number.cumsum(0) - number, self.weights[places]
        taken, starts, weights = (part.to(self.item_similarity.device) for part in (taken, starts, weights))
        return F.embedding_bag(taken, self.item_similarity, starts, mode="sum", per_sample_weights=weights)

    def predict(self, interaction) -> torch.Tensor:
        """Scores (B,) of the pairs."""
        scores = self._scores(interaction[self.USER_ID])
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Scores of B users over all items, flat: (B * n_items,)."""
        return self._scores(interaction[self.USER_ID]).view(-1)


def _item_similarity(seen: sp.csr_matrix, reg_weight: float) -> np.ndarray:
    """EASE's B (n_items, n_items) of the training matrix (n_users, n_items)."""
    gram = (seen.T @ seen).toarray(order="F")
    gram[np.diag_indices_from(gram)] += reg_weight
    factor, failed = lapack.spotrf(gram, lower=True, clean=False, overwrite_a=True)
    inverse, singular = lapack.spotri(factor, lower=True, overwrite_c=True)
    if failed or singular:
        raise ConfigError(f"reg_weight: {reg_weight} is too small for these data; their matrix has no inverse")
    inverse = inverse.T  # row by row in memory; LAPACK has left one half as it was, here the lower one
    for start in range(0, len(inverse), _ROWS):
        rows, right = slice(start, start + _ROWS), slice(start + _ROWS, None)
        block = np.triu(inverse[rows, rows])
        inverse[rows, rows] = block + np.triu(block, 1).T
        inverse[right, rows] = inverse[rows, right].T
    inverse /= -inverse.diagonal()
    np.fill_diagonal(inverse, 0.0)
    return inverse
