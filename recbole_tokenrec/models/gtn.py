"""GTN, Graph Trend Filtering Networks (Fan et al., SIGIR 2022): embeddings smoothed under an L1 penalty.

LightGCN's propagation shrinks the *squared* differences along the edges, and so treats every edge alike.
GTN shrinks their absolute values: with the incidence matrix D of the user-item graph it looks for

    argmin_E  1/2 ||E - E_in||_F^2 + lambda2 ||D E||_1                                       (objective)

whose solution levels small differences and gives up on large ones, such as a click that does not fit.
``n_layers`` steps of a proximal primal-dual solver are unrolled and trained through; the last iterate scores.

What lambda2 does depends on the embeddings' scale. At the authors' 4.0 no entry of the dual variable was ever
clipped on lastfm (64 dimensions; the largest was 1.3 after 60 epochs): GTN then is the *linear* smoothing
(I - beta D^T D)^n_layers E_in, which is tested. The penalty acts as an L1 one from about 1 downwards; the default
of 0.3 was the best on lastfm's validation (NDCG@20 of .0605 against .0597 at 4 and .0558 at 0.05, one seed).

Memory: the dual variable has one row per *edge*, (n_edges, embedding_size): 256 MB on ML-1M at 64 dimensions.
The model holds one such matrix, and a training step one byte per entry and layer for the gradient.
"""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.loss import BPRLoss, EmbLoss
from recbole.utils import InputType
from torch import nn

from recbole_tokenrec.options import Option, WithOptions

_CHUNK = 8192  # edges: 2 MB of a dual variable at 64 dimensions


def scaled_incidence(interactions: sp.spmatrix) -> sp.csr_matrix:
    """The incidence matrix D with its columns scaled by (degree + 1)^-1/2; users first, then items.

    Row e of the edge (u, i) holds +(d_u + 1)^-1/2 at u and -(d_i + 1)^-1/2 at i. The self-loop counts in the
    degrees but is no row, which makes ``D.T @ D`` equal I - S (A + I) S, S = diag(degree + 1)^-1/2: the
    Laplacian of the graph with self-loops. Its eigenvalues lie in [0, 2), the bound that ``beta`` needs.

    Args:
        interactions: (n_users, n_items), any non-zero entry is one edge, however often it occurs.

    Returns:
        float32 CSR, (n_edges, n_users + n_items).
    """
    edges = sp.csr_matrix(interactions, copy=True)
    edges.sum_duplicates()
    edges.eliminate_zeros()
    n_users, n_items = edges.shape
    edges = edges.tocoo()
    ends = np.stack([edges.row, edges.col + n_users], axis=1)  # (n_edges, 2)
    degree = np.bincount(ends.ravel(), minlength=n_users + n_items)
    values = (degree[ends] + 1.0) ** -0.5 * np.array([1.0, -1.0])  # (n_edges, 2)
    starts = np.arange(0, ends.size + 1, 2)
    matrix = sp.csr_matrix((values.ravel(), ends.ravel(), starts), shape=(edges.nnz, n_users + n_items))
    return matrix.astype(np.float32)


class TrendFilter(nn.Module):
    """``n_layers`` steps of the proximal primal-dual iteration on the objective, from Z = 0 and E = E_in:

        Y = E - gamma (E - E_in)
        Z = clip(Z + beta/gamma D (Y - gamma D^T Z), -lambda2, lambda2)
        E = Y - gamma D^T Z

    It converges to the minimiser for beta <= 1/||D D^T||, for which 1/2 always suffices, and 0 < gamma < 2.
    At gamma = 1, Y is E_in whatever E is, so that dropout on E matters after the last step only, and there
    it is applied. The reference also drops the E of earlier steps, which reaches nothing at its gamma = 1.

    Args:
        incidence: (n_edges, n_nodes), two entries in each row, from ``scaled_incidence``.
    """

    def __init__(self, incidence, n_layers, lambda2, beta=0.5, gamma=1.0, dropout=0.0, device="cpu"):
        super().__init__()
        self.n_layers, self.lambda2, self.beta, self.gamma = n_layers, lambda2, beta, gamma
        self.dropout = nn.Dropout(dropout)
        # Attributes, not buffers, as in RecBole's LightGCN: the graph is data, and no part of a checkpoint.
        transposed = sp.csr_matrix(incidence.T)
        self.ends = _tensor(incidence.indices, device).view(-1, 2)  # (n_edges, 2)
        self.end_values = _tensor(incidence.data, device).view(-1, 2)  # (n_edges, 2)
        self.node_starts = _tensor(transposed.indptr, device)  # (n_nodes + 1,)
        self.node_edges = _tensor(transposed.indices, device)  # (2 n_edges,)
        self.node_values = _tensor(transposed.data, device)  # (2 n_edges,)
        self._workspace = None

    def forward(self, e_in: torch.Tensor) -> torch.Tensor:
        """E_in (n_nodes, d) -> the last iterate E (n_nodes, d)"""
        keep = torch.is_grad_enabled() and e_in.requires_grad
        return self.dropout(_Iteration.apply(e_in, self, keep))

    # D and its transpose are applied as weighted bags: on one CPU thread 2 to 9 times as fast as torch's CSR
    # product or index_select and index_add_ (48k and 1M edges, 64 dimensions). Chunks of edges fit the cache.
    def differences(self, nodes, dual, scale, mask):
        """Yield the rows of ``dual`` with scale * D nodes added in place, and the same rows of ``mask``.

        nodes: (n_nodes, d); dual: (n_edges, d); mask: (n_edges, d) or None; yields two (chunk, d)
        """
        for start in range(0, len(dual), _CHUNK):
            rows = slice(start, start + _CHUNK)
            change = F.embedding_bag(
                self.ends[rows], nodes, mode="sum", per_sample_weights=self.end_values[rows]
            )  # (chunk, d)
            yield dual[rows].add_(change, alpha=scale), None if mask is None else mask[rows]

    def divergence(self, dual):
        """D^T dual. (n_edges, d) -> (n_nodes, d)"""
        return F.embedding_bag(
            self.node_edges,
            dual,
            self.node_starts,
            mode="sum",
            per_sample_weights=self.node_values,
            include_last_offset=True,
        )

    def zeroed_workspace(self, like):
        """Zeros (n_edges, d), always in the same memory: fetching it anew costs more than working on it."""
        shape = (len(self.ends), like.shape[1])
        kept = self._workspace
        if kept is None or kept.shape != shape or kept.dtype != like.dtype or kept.device != like.device:
            self._workspace = like.new_empty(shape)
        return self._workspace.zero_()


class _Iteration(torch.autograd.Function):
    """The unrolled iteration and its gradient. Z lives in the filter's workspace; of each clip one byte per
    entry is kept, where autograd would keep copies of Z. The gradient of Z then takes the same workspace."""

    @staticmethod
    def forward(ctx, e_in, trend, keep):
        beta, gamma, bound = trend.beta, trend.gamma, trend.lambda2
        dual = trend.zeroed_workspace(e_in)  # Z, (n_edges, d)
        e, divergence, masks = e_in, torch.zeros_like(e_in), []
        for _ in range(trend.n_layers):
            y = e - gamma * (e - e_in)  # (n_nodes, d)
            inside = torch.empty_like(dual, dtype=torch.bool) if keep else None  # (n_edges, d)
            for z, kept in trend.differences(y - gamma * divergence, dual, beta / gamma, inside):
                if keep:
                    torch.le(z.abs(), bound, out=kept)
                z.clamp_(-bound, bound)
            masks.append(inside)
            divergence = trend.divergence(dual)  # D^T Z, (n_nodes, d)
            e = y - gamma * divergence  # (n_nodes, d)
        ctx.trend, ctx.masks = trend, masks
        return e

    @staticmethod
    def backward(ctx, grad_e):
        trend, beta, gamma = ctx.trend, ctx.trend.beta, ctx.trend.gamma
        grad_dual = trend.zeroed_workspace(grad_e)  # dL/dZ, (n_edges, d)
        grad_in = torch.zeros_like(grad_e)  # (n_nodes, d)
        grad_divergence = 0.0
        for inside in reversed(ctx.masks):
            grad_divergence = grad_divergence - gamma * grad_e  # (n_nodes, d)
            for g, kept in trend.differences(grad_divergence, grad_dual, 1.0, inside):
                g.mul_(kept)
            grad_predicted = (beta / gamma) * trend.divergence(grad_dual)  # (n_nodes, d)
            grad_y = grad_e + grad_predicted  # (n_nodes, d)
            grad_in += gamma * grad_y
            grad_e = (1 - gamma) * grad_y
            grad_divergence = -gamma * grad_predicted
        return grad_in + grad_e, None, None


class GTN(WithOptions, GeneralRecommender):
    """Graph trend filtering on free user and item embeddings, scored by dot product, trained with BPR.

    Differences from the authors' code: RecBole draws the batches (one pass over the interactions; theirs
    draws users first) and selects on validation data, and the default is 64 dimensions, not 256.

    Raises:
        ConfigError: a key of properties/model/GTN.yaml is out of its range.
    """

    input_type = InputType.PAIRWISE

    options = {
        "embedding_size": Option(int, low=1),
        "n_layers": Option(int, low=1),
        "lambda2": Option(float, low=0, open_low=True),
        # beyond these two ends the iteration may diverge
        "beta": Option(float, low=0, open_low=True, high=0.5),
        "gamma": Option(float, low=0, open_low=True, high=2, open_high=True),
        "prop_dropout": Option(float, low=0, high=1, open_high=True),
        "reg_weight": Option(float, low=0),
    }

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_config(config)
        self.reg_weight = config["reg_weight"]
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=0.1)  # the reference's; lambda2 is tuned to this scale
        self.propagate = TrendFilter(
            scaled_incidence(dataset.inter_matrix(form="csr")),
            n_layers=config["n_layers"],
            lambda2=config["lambda2"],
            beta=config["beta"],
            gamma=config["gamma"],
            dropout=config["prop_dropout"],
            device=self.device,
        )
        self.bpr_loss = BPRLoss()
        self.reg_loss = EmbLoss()
        # Propagated embeddings, kept between the batches of one evaluation.
        self.restore_user_e = None
        self.restore_item_e = None
        self.other_parameter_name = ["restore_user_e", "restore_item_e"]

    def forward(self):
        """Propagated users (n_users, d) and items (n_items, d)."""
        e_in = torch.cat([self.user_embedding.weight, self.item_embedding.weight])  # (n_users + n_items, d)
        return torch.split(self.propagate(e_in), [self.n_users, self.n_items])

    def calculate_loss(self, interaction):
        """BPR + reg_weight * (||u||^2 + ||i||^2 + ||j||^2) / 2 per sample; u, i, j before propagation."""
        self.restore_user_e = self.restore_item_e = None
        user = interaction[self.USER_ID]  # (B,)
        positive = interaction[self.ITEM_ID]  # (B,)
        negative = interaction[self.NEG_ITEM_ID]  # (B,)
        users, items = self.forward()
        u = users[user]  # (B, d)
        positive_score = (u * items[positive]).sum(dim=1)  # (B,)
        negative_score = (u * items[negative]).sum(dim=1)  # (B,)
        ego = self.user_embedding(user), self.item_embedding(positive), self.item_embedding(negative)
        reg = self.reg_loss(*ego, require_pow=True)  # (1,)
        return self.bpr_loss(positive_score, negative_score) + self.reg_weight * reg.squeeze()

    def predict(self, interaction):
        """Scores of (user, item) pairs, (B,)"""
        users, items = self.forward()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction):
        """Scores of all items for each user, flat: (B * n_items,)"""
        if self.restore_user_e is None:
            self.restore_user_e, self.restore_item_e = self.forward()
        scores = self.restore_user_e[interaction[self.USER_ID]] @ self.restore_item_e.T  # (B, n_items)
        return scores.view(-1)


def _tensor(array, device):
    kind = np.int64 if array.dtype.kind == "i" else np.float32
    return torch.from_numpy(array.astype(kind)).to(device)
