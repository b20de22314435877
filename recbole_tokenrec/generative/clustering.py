"""Recursive spectral clustering of items by co-occurrence: the tree behind CID (Hua et al., SIGIR-AP 2023).

Two items are as close as the number of users whose *training* history holds both. The items are split into
``clusters`` groups by spectral clustering; a group of more than ``cluster_size`` items is split again by its own
part of the affinities, and so on. An item's code is the tokens of the groups on its path and its place in the last.

The clustering is scikit-learn's ``SpectralClustering(affinity="precomputed", assign_labels="cluster_qr")`` (a test
compares them) without its dense or factorised matrices: the affinities stay sparse, float32, and only products with
them are needed, so that Clothing's 23,033 items take some hundred MiB. A faint affinity between all items is added
(as rank one, never stored), since items without any partner and groups without a bridge leave the spectrum, and
scikit-learn's solver, undetermined.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from recbole_tokenrec.histories import Histories

_FAINT = 0.01  # of the mean affinity; below it, the eigenvectors of parts that barely hang together mix
_DENSE = 1000  # items: up to here LAPACK is faster and always converges


def co_occurrence(histories: Histories, n_items: int) -> sp.csr_matrix:
    """(n_items, n_items) float32: number of users who took both items in training; 0 on the diagonal."""
    shape = (histories.n_users, n_items)
    items = histories.items.numpy()
    taken = sp.csr_matrix((np.ones(len(items), np.float32), items, histories.indptr.numpy()), shape=shape)
    together = (taken.T @ taken).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    return together


def cluster_codes(
    histories: Histories, n_items: int, seen: np.ndarray, rest: np.ndarray, clusters: int, size: int, seed: int
) -> list[tuple[int, ...]]:
    """Codes (n_items,) of items, each a tuple of numbers; () for items in neither part.

    As in the authors' code each group has a number of its own, from ``size`` on, and a leaf's items the numbers from
    0 on: what follows a group then is learnt from all items on that path. (OpenP5 lets groups share ``size`` numbers
    in turn.) The items of ``rest``, which training lacks, are a further group below the root, in as many digits as
    they need.

    Args:
        seen, rest: disjoint item ids; their order is that of the items within a leaf.
        clusters: groups of a split.
        size: most items of a leaf.
    """
    codes: list[tuple[int, ...]] = [()] * n_items
    affinity = co_occurrence(histories, n_items)
    rng = np.random.default_rng(seed)
    rolled = 0
    waiting = deque([(seen, ())] if len(seen) else [])
    while waiting:
        items, path = waiting.popleft()
        if path and len(items) <= size:
            for place, item in enumerate(items.tolist()):
                codes[item] = (*path, place)
            continue
        groups = _split(affinity[items][:, items], clusters, rng) if len(items) > size else [np.arange(len(items))]
        for members in groups:
            waiting.append((items[members], (*path, size + rolled)))
            rolled += 1
        if not path and len(rest):
            digits = 1
            while size**digits < len(rest):
                digits += 1
            for place, item in enumerate(rest.tolist()):
                codes[item] = (size + rolled, *((place // size**power) % size for power in reversed(range(digits))))
            rolled += 1
    return codes


def _split(affinity: sp.csr_matrix, clusters: int, rng) -> list[np.ndarray]:
    """Groups of rows, none empty, at least two. Each keeps the rows' order."""
    clusters = min(clusters, affinity.shape[0])
    vectors = spectral_embedding(affinity, clusters, rng)
    labels = cluster_qr(vectors)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(groups) == 1:  # nothing to tell the items apart by: cut along the second eigenvector
        groups = [np.sort(part) for part in np.array_split(np.argsort(vectors[:, -2], kind="stable"), clusters)]
    return groups


def spectral_embedding(affinity: sp.csr_matrix, dimensions: int, rng) -> np.ndarray:
    """Leading eigenvectors of the random walk D^-1 A, in ascending order of eigenvalue: (n, dimensions) float64."""
    n = affinity.shape[0]
    faint = _FAINT * float(affinity.sum(dtype=np.float64)) / n**2 or 1.0 / n
    degree = np.asarray(affinity.sum(axis=1, dtype=np.float64)).ravel() + faint * n
    scale = degree**-0.5
    if n <= max(_DENSE, dimensions + 1):
        dense = scale[:, None] * (affinity.toarray().astype(np.float64) + faint) * scale
        _, vectors = scipy.linalg.eigh(dense, subset_by_index=[n - dimensions, n - 1])
        return vectors * scale[:, None]
    walk = affinity.multiply(scale[:, None]).multiply(scale).tocsr().astype(np.float32)
    scale32 = scale.astype(np.float32)

    def product(x):
        x = x.ravel().astype(np.float32)
        return walk @ x + np.float32(faint) * scale32 * (scale32 @ x)

    operator = LinearOperator((n, n), matvec=product, dtype=np.float32)
    start = rng.standard_normal(n).astype(np.float32)
    try:
        _, vectors = eigsh(operator, k=dimensions, which="LA", v0=start, ncv=4 * dimensions, tol=1e-3, maxiter=300)
    except ArpackNoConvergence as error:  # the rest of the spectrum is flat: fewer directions tell items apart
        vectors = error.eigenvectors
        if vectors.shape[1] < 2:
            vectors = np.stack([start, scale32], axis=1)
    return vectors.astype(np.float64) * scale[:, None]


def cluster_qr(vectors: np.ndarray) -> np.ndarray:
    """Labels (n,) from spectral vectors (n, k) by pivoted QR (Damle, Minden and Ying, 2019).

    The pivots are k items that are as different as can be; the polar factor turns the vectors so that each of
    those items lies near an axis of its own, and an item belongs to the axis it is largest on.
    """
    k = vectors.shape[1]
    _, pivots = scipy.linalg.qr(vectors.T, mode="r", pivoting=True)
    left, _, right = scipy.linalg.svd(vectors[pivots[:k]].T, full_matrices=False)
    return np.abs(vectors @ (left @ right)).argmax(axis=1)
