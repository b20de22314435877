"""LTGNN, a GNN of linear cost (Zhang et al., WWW 2024): endless propagation at the price of one layer a step.

The embeddings that are scored are the fixed point of personalised PageRank on the user-item graph,

    E* = (1 - alpha) A E* + alpha E_in,   that is   E* = alpha (I - (1 - alpha) A)^-1 E_in,      (fixed point)

A = D^-1/2 (adjacency) D^-1/2. It is never solved for. Each step moves the nodes of its batch by *one* layer,
from where a memory says that earlier steps left their neighbours; the gradient, a fixed point of the same
kind, has a memory of its own. Neighbours are sampled, and the error of sampling is kept small by sampling
only the *change* since a snapshot whose exact neighbour sums are known (variance reduction).

Space: four (n_nodes, embedding_size) tables, two where nothing is sampled.
"""

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.init import xavier_uniform_initialization
from recbole.model.loss import BPRLoss, EmbLoss
from recbole.utils import InputType
from torch import nn

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.graph import normalised_adjacency
from recbole_tokenrec.options import Option, WithOptions

_INITIAL_LAYERS = 7  # exact layers that fill the forward memory before the first step: the reference's number


class Graph:
    """The rows of a sparse square matrix, whole or sampled, as CSR tensors (starts, columns, values).

    Args:
        matrix: scipy CSR, (n_nodes, n_nodes).
    """

    def __init__(self, matrix, device):
        self.starts = torch.from_numpy(matrix.indptr.astype(np.int64)).to(device)  # (n_nodes + 1,)
        self.columns = torch.from_numpy(matrix.indices.astype(np.int64)).to(device)  # (n_entries,)
        self.values = torch.from_numpy(matrix.data.astype(np.float32)).to(device)  # (n_entries,)

    def all_rows(self):
        """The whole matrix: starts (n_nodes + 1,), columns (n_entries,), values (n_entries,)."""
        return self.starts, self.columns, self.values

    def rows(self, nodes, limit=-1):
        """The rows of ``nodes`` (n,), of each at most ``limit`` entries (-1: all).

        A longer row is a uniform subset, scaled by its length / limit: the expectation is the row itself.

        Returns:
            starts (n + 1,), columns (m,), values (m,).
        """
        first = self.starts[nodes]  # (n,)
        degree = self.starts[nodes + 1] - first  # (n,)
        kept = degree if limit < 0 else degree.clamp_max(limit)  # (n,)
        starts = F.pad(kept.cumsum(0), (1, 0))  # (n + 1,)
        row = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), kept)  # (m,)
        position = torch.arange(len(row), device=nodes.device) - starts[row]  # (m,), 0.. within each row
        long = degree > kept  # (n,)
        position[long[row]] = random_subsets(degree[long], limit).flatten()
        entry = first[row] + position  # (m,)
        scale = degree / kept.clamp_min(1)  # (n,)
        return starts, self.columns[entry], self.values[entry] * scale[row]


def random_subsets(sizes, k):
    """One uniform k-subset of range(size) for each of ``sizes`` (n,), all >= k. Returns (n, k).

    Floyd's algorithm for all sizes at once: its cost grows with k and not with the sizes.
    """
    chosen = sizes.new_empty(len(sizes), max(k, 0))
    for j in range(chosen.shape[1]):
        last = sizes - k + j  # (n,)
        draw = (torch.rand(len(sizes), dtype=torch.float64, device=sizes.device) * (last + 1)).long()  # (n,)
        taken = (chosen[:, :j] == draw.unsqueeze(1)).any(dim=1)  # (n,)
        chosen[:, j] = torch.where(taken, last, draw)
    return chosen


def product(rows, dense):
    """Sparse ``rows`` (of n nodes) times ``dense`` (n_nodes, d) -> (n, d).

    A weighted embedding bag: on one CPU thread several times as fast as torch's CSR product.
    """
    starts, columns, values = rows
    return F.embedding_bag(columns, dense, starts, mode="sum", per_sample_weights=values, include_last_offset=True)


class Memory(nn.Module):
    """What each node was last left at, and unbiased sums of it over sampled neighbours.

    ``table`` (n_nodes, d) belongs to the checkpoint; a snapshot, if wanted, is taken anew in every epoch.
    """

    def __init__(self, table, variance_reduction):
        super().__init__()
        blank = torch.zeros_like(table) if variance_reduction else None
        self.register_buffer("table", table.clone())
        self.register_buffer("snapshot", blank, persistent=False)
        self.register_buffer("snapshot_sums", None if blank is None else blank.clone(), persistent=False)

    def take_snapshot(self, graph):
        """Keep the table and its exact neighbour sums: one full product."""
        self.snapshot.copy_(self.table)
        self.snapshot_sums.copy_(product(graph.all_rows(), self.table))

    def neighbour_sums(self, nodes, rows):
        """Estimate of A Z at ``nodes``, (n, d): rows (Z - Z_snapshot) + A Z_snapshot, exact for whole rows."""
        sums = product(rows, self.table)  # (n, d)
        if self.snapshot is None:
            return sums
        return sums - product(rows, self.snapshot) + self.snapshot_sums[nodes]


class _ImplicitLayer(torch.autograd.Function):
    """One layer towards the fixed point; backward, one layer towards the fixed point of the gradient,
    G* = (1 - alpha) A G* + alpha dL/dE (A is symmetric), on the same sample. Both write what they found."""

    @staticmethod
    def forward(ctx, e_in, alpha, nodes, rows, outputs, gradients):
        out = (1 - alpha) * outputs.neighbour_sums(nodes, rows) + alpha * e_in  # (n, d)
        outputs.table[nodes] = out
        ctx.alpha, ctx.nodes, ctx.rows, ctx.gradients = alpha, nodes, rows, gradients
        return out

    @staticmethod
    def backward(ctx, grad):
        sums = ctx.gradients.neighbour_sums(ctx.nodes, ctx.rows)  # (n, d)
        grad = (1 - ctx.alpha) * sums + ctx.alpha * grad  # (n, d)
        ctx.gradients.table[ctx.nodes] = grad
        return grad, None, None, None, None, None


class LTGNN(WithOptions, GeneralRecommender):
    """Implicit propagation with memories, scored by dot product, trained with BPR.

    ``num_neighbors: -1`` takes all neighbours: exact sums, no snapshot. The snapshot is renewed when the
    trainer calls ``model.train()``, as RecBole's does at the start of every epoch. ``learner: sparse_adam``
    gets sparse gradients, every other learner dense ones.

    Differences from the authors' code: of its output correction only the share of E_in (its other two shares
    are 0 by default); the backward layer always starts from memory (its ``grad_mix`` 0); RecBole draws the
    batches.

    Raises:
        ConfigError: a key of properties/model/LTGNN.yaml is out of its range.
    """

    input_type = InputType.PAIRWISE

    options = {
        "embedding_size": Option(int, low=1),
        "alpha": Option(float, low=0, open_low=True, high=1, open_high=True),
        "num_neighbors": Option(int, low=-1),
        "eval_layers": Option(int, low=1),
        "output_correction": Option(float, low=0, high=1, open_high=True),
        "reg_weight": Option(float, low=0),
    }

    @classmethod
    def check_config(cls, config) -> None:
        """Also raise a ``ConfigError`` for no neighbours at all."""
        super().check_config(config)
        if config["num_neighbors"] == 0:
            raise ConfigError("num_neighbors: 0 is not allowed; allowed: int in [1, inf), or -1 for all neighbours")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_config(config)
        self.alpha = config["alpha"]
        self.num_neighbors = config["num_neighbors"]
        self.eval_layers = config["eval_layers"]
        self.output_correction = config["output_correction"]
        self.reg_weight = config["reg_weight"]
        sparse = str(config["learner"]).lower() == "sparse_adam"
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"], sparse=sparse)
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"], sparse=sparse)
        self.apply(xavier_uniform_initialization)
        # An attribute, not a buffer, as in RecBole's LightGCN: the graph is data, not part of a checkpoint.
        self.graph = Graph(normalised_adjacency(dataset.inter_matrix(form="csr")), self.device)
        with torch.no_grad():
            e_in = self.ego_embeddings().to(self.device)
            start = self.propagate(e_in, _INITIAL_LAYERS)
        # A node's gradient has little to do with what it was an epoch ago: on lastfm, with 15 neighbours, a
        # snapshot takes the squared error of output sums from 4.5 % to 0.02 %, but doubles that of gradients.
        self.outputs = Memory(start, variance_reduction=self.num_neighbors > 0)
        self.gradients = Memory(torch.zeros_like(start), variance_reduction=False)
        self._snapshot_due = True
        self.bpr_loss = BPRLoss()
        self.reg_loss = EmbLoss()
        # Propagated embeddings, kept between the batches of one evaluation.
        self.restore_user_e = None
        self.restore_item_e = None
        self.other_parameter_name = ["restore_user_e", "restore_item_e"]

    def train(self, mode=True):
        """Also makes the next training step renew the snapshot."""
        self._snapshot_due = mode
        return super().train(mode)

    def ego_embeddings(self):
        """E_in, users first: (n_users + n_items, d)"""
        return torch.cat([self.user_embedding.weight, self.item_embedding.weight])

    def propagate(self, e_in, n_layers):
        """``n_layers`` exact layers from E_in. (n_nodes, d) -> (n_nodes, d)"""
        e = e_in
        for _ in range(n_layers):
            e = (1 - self.alpha) * product(self.graph.all_rows(), e) + self.alpha * e_in  # (n_nodes, d)
        return e

    def correct(self, e, e_in):
        """Take a share of E_in out of the output, which few layers over-count. (n, d), (n, d) -> (n, d)"""
        return (e - self.output_correction * e_in) / (1 - self.output_correction)

    def forward(self):
        """Users (n_users, d) and items (n_items, d) as they are scored: ``eval_layers`` exact layers."""
        e_in = self.ego_embeddings()
        e = self.correct(self.propagate(e_in, self.eval_layers), e_in)  # (n_users + n_items, d)
        return torch.split(e, [self.n_users, self.n_items])

    def calculate_loss(self, interaction):
        """BPR + reg_weight * (||u||^2 + ||i||^2 + ||j||^2) / 2 per sample; u, i, j before propagation."""
        self.restore_user_e = self.restore_item_e = None
        if self._snapshot_due and self.num_neighbors > 0:
            self.outputs.take_snapshot(self.graph)
        self._snapshot_due = False
        users = interaction[self.USER_ID]  # (B,)
        positive = interaction[self.ITEM_ID] + self.n_users  # (B,)
        negative = interaction[self.NEG_ITEM_ID] + self.n_users  # (B,)
        occurring = torch.cat([users, positive, negative])  # (3B,)
        nodes, place = torch.unique(occurring, return_inverse=True)  # (n,), (3B,)
        e_in = torch.cat(
            [
                self.user_embedding(nodes[nodes < self.n_users]),
                self.item_embedding(nodes[nodes >= self.n_users] - self.n_users),
            ]
        )  # (n, d)
        rows = self.graph.rows(nodes, self.num_neighbors)
        e = _ImplicitLayer.apply(e_in, self.alpha, nodes, rows, self.outputs, self.gradients)  # (n, d)
        u, i, j = self.correct(e, e_in)[place].chunk(3)  # (B, d) each
        ego = e_in[place].chunk(3)  # (B, d) each
        reg = self.reg_loss(*ego, require_pow=True)  # (1,)
        return self.bpr_loss((u * i).sum(dim=1), (u * j).sum(dim=1)) + self.reg_weight * reg.squeeze()

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
