"""The user-item graph as one sparse matrix, and products with it whose gradient is as cheap as the product.

RecBole builds LightGCN's adjacency by Python dictionaries and multiplies it in COO format. The same matrix in
CSR format is built in a fraction of the time and multiplied several times faster on CPU. It is symmetric, so the
gradient of ``A @ x`` is ``A @ grad``: autograd would build the transpose instead.
"""

import warnings

import numpy as np
import scipy.sparse as sp
import torch


def normalised_adjacency(interactions: sp.spmatrix) -> sp.csr_matrix:
    """D^-1/2 A D^-1/2 of the bipartite graph; users first, then items.

    Args:
        interactions: (n_users, n_items), any non-zero entry is one edge, however often it occurs.

    Returns:
        float32 CSR matrix of shape (n_users + n_items,) * 2, equal to RecBole's ``LightGCN.get_norm_adj_mat``
        (which adds 1e-7 to each degree).
    """
    interactions = sp.csr_matrix(interactions)
    interactions.sum_duplicates()
    edges = interactions.copy()
    edges.data = np.ones_like(edges.data, dtype=np.float64)
    adjacency = sp.bmat([[None, edges], [edges.T, None]], format="csr")
    scale = sp.diags((np.asarray(adjacency.sum(axis=1)).ravel() + 1e-7) ** -0.5)
    return (scale @ adjacency @ scale).tocsr().astype(np.float32)


def to_torch_csr(matrix: sp.spmatrix) -> torch.Tensor:
    """A scipy matrix as a torch CSR tensor (int64 indices, the values' own type)."""
    matrix = sp.csr_matrix(matrix)
    matrix.sort_indices()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            size=matrix.shape,
            check_invariants=False,
        )


class _SymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, dense):
        ctx.matrix = matrix
        return matrix @ dense

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.matrix @ grad


def symmetric_product(matrix: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """``matrix @ dense`` for a *symmetric* sparse matrix; differentiable in ``dense``. (n, n) x (n, d)"""
    return _SymmetricProduct.apply(matrix, dense)
