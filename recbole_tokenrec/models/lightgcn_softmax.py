"""LightGCN trained for cosine retrieval: the collaborative stage under ``cf_loss: softmax_cosine``, and a baseline.

TokenRec retrieves by cosine among all items, BPR shapes dot products against one sampled item. This model keeps
LightGCN's propagation (mean of layers, symmetric normalisation) and trains the cosine itself, by the cross-entropy
over the whole catalogue. Scores cost per user, not per interaction: a batch is users, and all training items of a
user share one row of scores.

Two things differ from LightGCN besides the loss, each an option:

``user_table: false``
    Users have no embedding of their own; p_u is propagated from the user's items alone (E_user^0 = 0). A new user's
    representation is then one product with frozen item inputs (:meth:`fold_in`): no training, Fig. 3 of the paper.
``item_offset: true``
    q_j = propagated item + an offset of its own, started at 0: what an item gives to its users' vectors and where it
    lies as a target need not be the same place.
``targets: next``
    The paper asks a user's vector for the very items that it is made of. Here a history is cut at a random moment,
    p_u is made of what lies before, and the next few items are the targets, as at evaluation. Interests fade: an item
    with a newer ones after it weighs (a + 1)^-recency in p_u, and the exponent is learnt, from ``recency`` on.
``targets: random``
    Items drawn at random are the targets, and p_u is made of all others: for data in which order says little.
``recency``, ``target_recency`` with ``targets: all``
    The same exponent, fixed, in the graph, and another one for the weight as a target. 0 ignores time, as the paper.
"""

from __future__ import annotations

import contextlib
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.graph import SparseMatrix
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.options import Option, WithOptions
from recbole_tokenrec.training.loaders import (
    AGE,
    TARGET_ITEMS,
    TARGET_ROWS,
    VISIBLE_ITEMS,
    VISIBLE_ROWS,
    HeldOutByUser,
    PairsByUser,
)
from recbole_tokenrec.training.losses import fast_bf16, softmax_cosine_loss
from recbole_tokenrec.training.parts import next_part, random_part
from recbole_tokenrec.training.sampling import draw_candidates


class LightGCNSoftmax(WithOptions, GeneralRecommender):
    """See the module's docstring.

    Args (in ``config``): ``embedding_size``, ``n_layers``, ``temperature``, ``target_weight`` (a user with n targets
        weighs n^target_weight in the loss), ``user_table``, ``item_offset``, ``targets``, ``target_ratio`` (least
        and largest share of a user's items held out), ``recency``, ``target_recency``, ``sampled_items`` (the softmax
        runs over about so many items in larger catalogues).
    """

    input_type = InputType.PAIRWISE

    options = {
        "embedding_size": Option(int, low=1),
        "n_layers": Option(int, low=0),
        "temperature": Option(float, low=0, open_low=True),
        "target_weight": Option(float, low=0, high=1),
        "user_table": Option(bool),
        "item_offset": Option(bool),
        "targets": Option(str, choices=("all", "next", "random")),
        "target_ratio": Option(list, shares=True),
        "sampled_items": Option(int, low=1),
        "recency": Option(float, low=0),
        "target_recency": Option(float, low=0),
        "precision": Option(str, choices=("auto", "fp32", "bf16"), optional=True),
    }

    @classmethod
    def check_config(cls, config) -> None:
        """Also raise a ``ConfigError`` for keys that contradict one another."""
        super().check_config(config)
        if config["targets"] != "all" and (config["user_table"] or config["n_layers"] == 0):
            raise ConfigError(f"targets: '{config['targets']}' needs user_table: false and n_layers of at least 1")
        if config["n_layers"] == 0 and not config["user_table"]:
            raise ConfigError("n_layers: 0 leaves users without a representation; set user_table: true")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_config(config)
        self.dim = config["embedding_size"]
        self.n_layers = config["n_layers"]
        self.temperature = config["temperature"]
        self.target_weight = config["target_weight"]
        self.sampled_items = config["sampled_items"]
        self.targets = config["targets"]
        self.splits = self.targets != "all"  # users are made of one part of their items and asked for another
        self.target_ratio = tuple(config["target_ratio"])
        self.recency, self.target_recency = float(config["recency"]), config["target_recency"]
        if self.splits:
            self.recency = nn.Parameter(torch.tensor(self.recency))
        precision = config["precision"] or "auto"
        self.low_precision = precision == "bf16" or (precision == "auto" and fast_bf16(self.device))
        self.histories = Histories.from_dataset(dataset)
        degree = np.bincount(self.histories.items.numpy(), minlength=self.n_items)
        self.item_scale = torch.from_numpy(np.maximum(degree, 1).astype(np.float32) ** -0.5)
        self.item_embedding = nn.Embedding(self.n_items, self.dim)
        self.user_embedding = nn.Embedding(self.n_users, self.dim) if config["user_table"] else None
        self.item_offset = nn.Parameter(torch.zeros(self.n_items, self.dim)) if config["item_offset"] else None
        for table in (self.item_embedding, self.user_embedding):
            if table is not None:
                nn.init.normal_(table.weight, std=0.1)
        self._evaluated = None

    @cached_property
    def to_users(self) -> SparseMatrix:
        """R (n_users, n_items) takes items to users, R_uj = age weight / sqrt(deg u deg j); its transpose back.

        Built when it is first needed: to recommend to the users that a trained TokenRec knows, it never is.
        """
        rows, items = self.histories.rows().numpy(), self.histories.items.numpy()
        user_scale = np.maximum(self.histories.counts().numpy(), 1) ** -0.5
        weights = user_scale[rows] * self.item_scale.numpy()[items]
        if not self.splits:
            weights = weights * (self.histories.ages().numpy() + 1.0) ** -self.recency
        matrix = sp.csr_matrix((weights.astype(np.float32), (rows, items)), shape=(self.n_users, self.n_items))
        return SparseMatrix(matrix).to(self.device)

    def _layers(self) -> tuple[list, list]:
        """Users and items of layers 0 … L; None stands for zeros."""
        users = [None if self.user_embedding is None else self.user_embedding.weight]
        items = [self.item_embedding.weight]
        for _ in range(self.n_layers):
            above_users, above_items = users[-1], items[-1]
            users.append(None if above_items is None else self.to_users @ above_items)
            items.append(None if above_users is None else self.to_users.T @ above_users)
        return users, items

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Users (n_users, d) and items (n_items, d)."""
        if self.splits:
            rows, ages = self.histories.rows().to(self.device), self.histories.ages().to(self.device)
            users = self.fold_in(rows, self.histories.items.to(self.device), ages, self.n_users)
            return users, self._item_vectors(self._item_layers(self.n_layers))
        users, items = self._layers()
        return sum(layer for layer in users if layer is not None) / (self.n_layers + 1), self._item_vectors(items)

    def _item_layers(self, depth: int) -> list:
        """Items of layers 0 … depth, as in :meth:`_layers`, without the users' layers that they do not need."""
        users = None if self.user_embedding is None else self.user_embedding.weight
        items = [self.item_embedding.weight]
        for layer in range(depth):
            above_users, above_items = users, items[-1]
            items.append(None if above_users is None else self.to_users.T @ above_users)
            if layer + 1 < depth:
                users = None if above_items is None else self.to_users @ above_items
        return items

    def _item_vectors(self, layers: list) -> torch.Tensor:
        vectors = sum(layer for layer in layers if layer is not None) / (self.n_layers + 1)
        return vectors if self.item_offset is None else vectors + self.item_offset

    def item_inputs(self) -> torch.Tensor:
        """(n_items, d): what an item adds to the vector of a user who takes it, its own degree included.

        p_u = own part of u + sum_j weight_uj item_inputs_j: exact while the items' layers stay as they are.
        """
        below = sum(layer for layer in self._item_layers(max(self.n_layers - 1, 0)) if layer is not None)
        return below * self.item_scale.to(below.device).unsqueeze(1) / (self.n_layers + 1)

    def fold_in(self, rows: torch.Tensor, items: torch.Tensor, ages: torch.Tensor, n_rows: int) -> torch.Tensor:
        """Vectors of users known by their items alone, up to a factor, which cosine ignores: (n_rows, d).

        Args:
            rows, items, ages: (n,) who took what, grouped by row in ascending order, and how many newer items that
                user has.
        """
        weights = (ages.float() + 1).pow(-self.recency)
        number = torch.bincount(rows, minlength=n_rows)
        return F.embedding_bag(
            items, self.item_inputs(), number.cumsum(0) - number, mode="sum", per_sample_weights=weights
        )

    def training_batches(self, batch_size: int):
        """The loader whose batches :meth:`calculate_loss` takes."""
        if self.splits:
            return HeldOutByUser(self.histories, batch_size, self.USER_ID, self._parts)
        return PairsByUser(self.histories, batch_size, self.USER_ID, self.ITEM_ID)

    def _parts(self, generator: torch.Generator):
        draw = next_part if self.targets == "next" else random_part
        return draw(self.histories, self.target_ratio, generator)

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Cross-entropy of the pairs of user and target in a batch of :meth:`training_batches`."""
        self._evaluated = None
        if self.splits:
            return self._held_out_loss(interaction)
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        present, rows, count = users.unique_consecutive(return_inverse=True, return_counts=True)
        weights = count.float().pow(self.target_weight - 1)[rows]
        if self.target_recency:
            age = (interaction[AGE].float() + 1).pow(-self.target_recency)
            total = torch.zeros(len(present), device=age.device).index_add_(0, rows, age)
            weights = weights * age * (count.float() / total)[rows]
        if self.user_embedding is None:  # a batch holds all items of its users: nobody else's vector is needed
            user_vectors = self.fold_in(rows, items, interaction[AGE], len(present))
            item_vectors = self._item_vectors(self._item_layers(self.n_layers))
        else:
            everybody, item_vectors = self.forward()
            user_vectors = everybody[present]
        return softmax_cosine_loss(
            user_vectors,
            item_vectors,
            rows,
            items,
            self.temperature,
            weights,
            low_precision=self.low_precision,
            candidates=draw_candidates(items, self.n_items, self.sampled_items),
        )

    def _held_out_loss(self, interaction) -> torch.Tensor:
        rows, items = interaction[TARGET_ROWS], interaction[TARGET_ITEMS]
        known = interaction[VISIBLE_ROWS], interaction[VISIBLE_ITEMS]
        batch = len(interaction[self.USER_ID])
        return softmax_cosine_loss(
            self.fold_in(*known, interaction[AGE], batch),
            self._item_vectors(self._item_layers(self.n_layers)),
            rows,
            items,
            self.temperature,
            torch.bincount(rows, minlength=batch).float().pow(self.target_weight - 1)[rows],
            masked=known,
            low_precision=self.low_precision,
            candidates=draw_candidates(items, self.n_items, self.sampled_items),
        )

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._evaluated = None  # of other weights: RecBole's trainer loads the best epoch's before it evaluates
        super()._load_from_state_dict(*args, **kwargs)

    def _vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._evaluated is None or self.training:
            with torch.no_grad():
                self._evaluated = tuple(F.normalize(table, dim=-1) for table in self.forward())
        return self._evaluated

    @contextlib.contextmanager
    @torch.no_grad()
    def reading(self, histories: Histories):
        """While it lasts, users are what ``histories`` make of them, by :meth:`fold_in`; no weight changes.

        Raises:
            ConfigError: users are rows of a trained table (``user_table: true``).
        """
        if self.user_embedding is not None:
            raise ConfigError("user_table: True leaves users as they were trained; allowed here: False")
        rows, items, ages = (part.to(self.device) for part in (histories.rows(), histories.items, histories.ages()))
        users, (_, places) = self.fold_in(rows, items, ages, histories.n_users), self._vectors()
        self._evaluated = F.normalize(users, dim=-1), places
        try:
            yield
        finally:
            self._evaluated = None

    def predict(self, interaction) -> torch.Tensor:
        """Cosine of the pairs (B,)."""
        users, items = self._vectors()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=-1)

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Cosine with all items, flat: (B * n_items,)."""
        users, items = self._vectors()
        return (users[interaction[self.USER_ID]] @ items.T).view(-1)
