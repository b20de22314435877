"""The user-item graph as one sparse matrix, and products with it whose gradient is as cheap as the product.

RecBole builds LightGCN's adjacency by Python dictionaries and multiplies it in COO format. The same matrix in
CSR format is built in a fraction of the time and multiplied several times faster on CPU. Its transpose is kept, or
shared where the matrix is symmetric, so that autograd need not build it at every step.
"""

from __future__ import annotations

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


class SparseMatrix:
    """A constant sparse matrix that multiplies dense ones, with its transpose at hand for the gradient.

    ``matrix @ dense``: (n, m) x (m, d) -> (n, d), differentiable in ``dense``. It holds no parameters, so copies of a
    model share it (torch cannot copy CSR tensors; RecBole copies every model to count its operations).
    """

    def __init__(self, matrix: sp.spmatrix, symmetric: bool = False):
        matrix = sp.csr_matrix(matrix)
        self.tensor = _torch_csr(matrix)
        self.transposed = self.tensor if symmetric else _torch_csr(matrix.T.tocsr())

    def to(self, device) -> SparseMatrix:
        self.tensor, self.transposed = self.tensor.to(device), self.transposed.to(device)
        return self

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        return _Product.apply(self.tensor, self.transposed, dense)

    @property
    def T(self) -> SparseMatrix:  # noqa: N802, torch's and numpy's name
        """The transpose, sharing all memory with this matrix."""
        twin = SparseMatrix.__new__(SparseMatrix)
        twin.tensor, twin.transposed = self.transposed, self.tensor
        return twin

    def __deepcopy__(self, memo) -> SparseMatrix:
        return self


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, transposed, dense):
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx, grad):
        return None, None, ctx.transposed @ grad


def _torch_csr(matrix: sp.csr_matrix) -> torch.Tensor:
    """A scipy matrix as a torch CSR tensor (int64 indices, the values' own type)."""
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
