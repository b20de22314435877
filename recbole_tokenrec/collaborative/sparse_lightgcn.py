"""RecBole's LightGCN with the same mathematics and a faster graph.

Same parameters, same propagation, same loss; the adjacency is built by scipy instead of Python dictionaries and is
multiplied in CSR format (see ``graph.py``). A test compares matrix, scores and gradients with RecBole's own.
"""

from __future__ import annotations

import numpy as np
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

    @torch.no_grad()
    def item_inputs(self) -> torch.Tensor:
        """(n_items, d): what an item propagates to each of its users, the user's own degree left out."""
        total = layer = self.get_ego_embeddings()
        for _ in range(self.n_layers - 1):
            layer = self.norm_adj_matrix @ layer
            total = total + layer
        if self.n_layers == 0:
            total = torch.zeros_like(total)
        degree = np.bincount(self.interaction_matrix.col, minlength=self.n_items).clip(min=1)
        scale = torch.from_numpy(degree**-0.5).to(total) / (self.n_layers + 1)
        return total[self.n_users :] * scale.unsqueeze(1)

    def fold_in(self, rows: torch.Tensor, items: torch.Tensor, ages: torch.Tensor, n_rows: int) -> torch.Tensor:
        """Vectors (n_rows, d) of users known by their items alone: their own embedding is 0, the items' layers frozen.

        Args:
            rows, items: (n,) who took what.
            ages: not used; LightGCN does not know time.
        """
        inputs = self.item_inputs()
        total = torch.zeros(n_rows, inputs.shape[1], device=inputs.device).index_add_(0, rows, inputs[items])
        return total * torch.bincount(rows, minlength=n_rows).clamp_min(1).pow(-0.5).unsqueeze(1)
