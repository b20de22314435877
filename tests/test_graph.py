"""The sparse graph: products and gradients against dense ones; copies share the matrix."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from recbole_tokenrec.graph import SparseMatrix, normalised_adjacency

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("symmetric", [False, True])
def test_product_and_gradient(symmetric):
    dense = np.random.default_rng(0).random((5, 5 if symmetric else 7)).astype(np.float32)
    dense[dense < 0.5] = 0
    dense = dense + dense.T if symmetric else dense
    x = torch.randn(dense.shape[1], 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, expected = SparseMatrix(sp.csr_matrix(dense), symmetric) @ x, torch.from_numpy(dense) @ y
    torch.testing.assert_close(ours, expected)
    ours.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_transpose_multiplies_both_ways_and_shares_memory():
    dense = np.arange(6, dtype=np.float32).reshape(2, 3)
    matrix = SparseMatrix(sp.csr_matrix(dense))
    x = torch.randn(2, 4, requires_grad=True)
    result = matrix.T @ x
    torch.testing.assert_close(result, torch.from_numpy(dense.T) @ x)
    result.sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(dense) @ torch.ones(3, 4))
    assert matrix.T.tensor is matrix.transposed and matrix.T.transposed is matrix.tensor


def test_copies_share_the_constant_matrix():
    matrix = SparseMatrix(sp.eye(3, format="csr"))
    assert copy.deepcopy([matrix])[0] is matrix


def test_adjacency_counts_an_edge_once_and_isolated_nodes_not_at_all():
    twice = sp.coo_matrix(([1.0, 1.0, 1.0], ([0, 0, 1], [0, 0, 0])), shape=(3, 2))
    expected = np.zeros((5, 5))
    expected[[0, 1], 3] = expected[3, [0, 1]] = 2**-0.5
    np.testing.assert_allclose(normalised_adjacency(twice).toarray(), expected, atol=1e-6)
