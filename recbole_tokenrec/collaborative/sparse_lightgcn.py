"""RecBole's LightGCN with the same mathematics and a faster graph.

Same parameters, same propagation, same loss; the adjacency is built by scipy instead of Python dictionaries and is
multiplied in CSR format (see ``graph.py``). A test compares matrix, scores and gradients with RecBole's own.
"""

from __future__ import annotations

import torch
from recbole.model.general_recommender.lightgcn import LightGCN

from recbole_tokenrec.graph import SparseMatrix, normalised_adjacency


class SparseLightGCN(LightGCN):
    """LightGCN whose propagation costs one CSR product a layer, forward and backward."""

    def get_norm_adj_mat(self) -> SparseMatrix:
        return SparseMatrix(normalised_adjacency(self.interaction_matrix), symmetric=True)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over layers 0 … L of A^l E: users (n_users, d) and items (n_items, d)."""
        total = layer = self.get_ego_embeddings()
        for _ in range(self.n_layers):
            layer = self.norm_adj_matrix @ layer
            total = total + layer
        return (total / (self.n_layers + 1)).split([self.n_users, self.n_items])
