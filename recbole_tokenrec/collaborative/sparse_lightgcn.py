"""RecBole's LightGCN with the same mathematics and a faster graph.

Same parameters, same propagation, same loss; the adjacency is built by scipy instead of Python dictionaries and is
multiplied in CSR format (see ``graph.py``). A test compares matrix, scores and gradients with RecBole's own.
"""

from __future__ import annotations

import scipy.sparse as sp
import torch
from recbole.model.general_recommender.lightgcn import LightGCN

from recbole_tokenrec.graph import normalised_adjacency, symmetric_product, to_torch_csr


class SparseLightGCN(LightGCN):
    """LightGCN whose propagation costs one CSR product a layer, forward and backward."""

    def get_norm_adj_mat(self) -> torch.Tensor:
        self.full_adjacency = to_torch_csr(normalised_adjacency(self.interaction_matrix))
        return self.full_adjacency

    def propagate(self, ego: torch.Tensor, adjacency: torch.Tensor | None = None) -> torch.Tensor:
        """Mean over layers 0 … L of A^l E: (n_users + n_items, d) -> the same shape."""
        adjacency = self.norm_adj_matrix if adjacency is None else adjacency
        total = layer = ego
        for _ in range(self.n_layers):
            layer = symmetric_product(adjacency, layer)
            total = total + layer
        return total / (self.n_layers + 1)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Propagated users (n_users, d) and items (n_items, d)."""
        return self.propagate(self.get_ego_embeddings()).split([self.n_users, self.n_items])

    def drop_edges(self, ratio: float, generator: torch.Generator) -> None:
        """Leave out a share of the edges (both directions) until the next call; 0 restores the whole graph.

        The kept weights are scaled by 1 / (1 - ratio), so that the expected propagation is the whole graph's.
        """
        device = self.norm_adj_matrix.device
        if ratio == 0:
            self.norm_adj_matrix = self.full_adjacency.to(device)
            return
        graph = self.interaction_matrix.tocsr()
        graph.sum_duplicates()
        weights = normalised_adjacency(graph)[: self.n_users, self.n_users :].tocoo()
        keep = (torch.rand(weights.nnz, generator=generator) >= ratio).numpy()
        kept = sp.coo_matrix(
            (weights.data[keep] / (1 - ratio), (weights.row[keep], weights.col[keep])), shape=weights.shape
        )
        self.norm_adj_matrix = to_torch_csr(sp.bmat([[None, kept], [kept.T, None]], format="csr")).to(device)
