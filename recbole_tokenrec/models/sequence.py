"""What the transformer baselines over item sequences share: SASRecCE, BERT4RecCE and S3RecCE.

They are RecBole's SASRec, BERT4Rec and S3Rec, layer for layer (RecBole's own ``TransformerEncoder``; its SASRec
checkpoints load into ours), but general recommenders with batches of users. Two reasons:

*Cost.* RecBole turns a history of n items into n - 1 prefixes and encodes each for one target. Here a window is
encoded once and every position is a target, as in the authors' own code: lastfm takes seconds an epoch, not minutes.

*One rule for a table.* As general recommenders they are split, masked and evaluated like every other row: history
masked, and scores at test from the training part only (RecBole hands its sequential models the validation item too,
and masks nothing).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.layers import TransformerEncoder
from recbole.trainer import Trainer
from recbole.utils import InputType
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.histories import Histories, take
from recbole_tokenrec.options import Option, WithOptions
from recbole_tokenrec.training.loaders import HISTORY, HISTORY_LENGTH, generator_for
from recbole_tokenrec.training.muon import Muon, with_matrices_apart

ENCODED_TOGETHER = 32  # sequences of like length, on a CPU


class SequenceModel(WithOptions, GeneralRecommender):
    """Item and position embeddings under a transformer encoder; a subclass says what is masked and what is learnt.

    Args (in ``config``, names of RecBole): ``hidden_size``, ``inner_size``, ``n_layers``, ``n_heads``,
        ``hidden_dropout_prob``, ``attn_dropout_prob``, ``hidden_act``, ``layer_norm_eps``, ``initializer_range``,
        ``MAX_ITEM_LIST_LENGTH``.
    """

    input_type = InputType.PAIRWISE
    extra_items = 0  # rows of the item table beyond the items: a mask token
    window_overlap = 0  # items that a training window shares with the one before

    options = {
        **dict.fromkeys(("n_layers", "n_heads", "hidden_size", "inner_size"), Option(int, low=1)),
        **dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob"), Option(float, low=0, high=1)),
        **dict.fromkeys(("layer_norm_eps", "initializer_range"), Option(float, low=0, open_low=True)),
        "hidden_act": Option(str, choices=("gelu", "relu", "swish", "tanh", "sigmoid")),
        "MAX_ITEM_LIST_LENGTH": Option(int, low=2),  # a window of one has no next item
    }

    @classmethod
    def check_config(cls, config) -> None:
        """Also raise a ``ConfigError`` for a width that the heads do not divide."""
        super().check_config(config)
        size = config["hidden_size"]
        if size % config["n_heads"]:
            raise ConfigError(f"n_heads: {config['n_heads']} is not allowed; allowed: divisors of hidden_size ({size})")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.check_config(config)
        size, longest = config["hidden_size"], config["MAX_ITEM_LIST_LENGTH"]
        self.max_length = longest
        self.histories = Histories.from_dataset(dataset)
        self.item_embedding = nn.Embedding(self.n_items + self.extra_items, size, padding_idx=0)
        self.position_embedding = nn.Embedding(longest, size)
        self.trm_encoder = TransformerEncoder(
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            hidden_size=size,
            inner_size=config["inner_size"],
            hidden_dropout_prob=config["hidden_dropout_prob"],
            attn_dropout_prob=config["attn_dropout_prob"],
            hidden_act=config["hidden_act"],
            layer_norm_eps=config["layer_norm_eps"],
        )
        self.LayerNorm = nn.LayerNorm(size, eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.initializer_range = config["initializer_range"]

    def _init_weights(self, module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(mean=0.0, std=self.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()

    def states(self, items: torch.Tensor, causal: bool) -> torch.Tensor:
        """Hidden states (B, M, h) of left-aligned sequences ``items`` (B, M), padded with 0, where states mean nothing.

        On a CPU most of the work would be padding, since histories are short and a few are long: there sequences of
        like length are encoded together. The states are the same.
        """
        if items.device.type != "cpu" or len(items) <= ENCODED_TOGETHER:
            return self._encoded(items, causal)
        lengths = (items != 0).sum(dim=1)
        order = lengths.argsort()
        groups = [
            F.pad(hidden, (0, 0, 0, items.shape[1] - hidden.shape[1]))
            for rows in order.split(ENCODED_TOGETHER)
            for hidden in [self._encoded(items[rows, : max(1, int(lengths[rows[-1]]))], causal)]
        ]
        return torch.cat(groups)[order.argsort()]

    def _encoded(self, items: torch.Tensor, causal: bool) -> torch.Tensor:
        length = items.shape[1]
        embedded = self.item_embedding(items) + self.position_embedding.weight[:length]
        seen = (items != 0)[:, None, None, :]  # (B, 1, 1, M) keys that exist
        if causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        mask = torch.where(seen, 0.0, -10000.0)
        hidden = self.dropout(self.LayerNorm(embedded))
        return self.trm_encoder(hidden, mask, output_all_encoded_layers=False)[-1]

    def item_scores(self, states: torch.Tensor) -> torch.Tensor:
        """(n, h) -> (n, n_items)."""
        raise NotImplementedError

    def last_states(self, users: torch.Tensor) -> torch.Tensor:
        """The state (B, h) from which the next item of each user is predicted."""
        raise NotImplementedError

    @contextlib.contextmanager
    def reading(self, histories: Histories):
        """While it lasts, users have these histories; no weight changes."""
        kept, self.histories = self.histories, histories
        try:
            yield
        finally:
            self.histories = kept

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Scores of B users over all items, flat: (B * n_items,)."""
        users = interaction[self.USER_ID]
        states = torch.cat([self.last_states(part) for part in users.split(512)])
        return self.item_scores(states).view(-1)

    def predict(self, interaction) -> torch.Tensor:
        """Scores (B,) of the pairs."""
        scores = self.item_scores(self.last_states(interaction[self.USER_ID]))
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)


class Windows:
    """Windows of at most ``length`` items that cover every history, cut at a new random offset in each epoch.

    Yields ``{history: (B, M) oldest first, padded with 0, history_length: (B,)}``; windows of one item are left out.
    """

    shuffle = False

    def __init__(self, histories: Histories, batch_size: int, length: int, overlap: int):
        self.histories, self.batch_size = histories, batch_size
        self.length, self.step = length, length - overlap
        self.generator = None

    def cuts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Start in ``histories.items`` and length of each window (W,)."""
        starts, lengths = [], []
        indptr = self.histories.indptr.tolist()
        for first, last in zip(indptr, indptr[1:]):
            offset = 0
            if last - first > self.length:
                offset = int(torch.randint(self.step, (1,), generator=self.generator))
            for start in range(first + offset - self.step if offset else first, last, self.step):
                begin, end = max(start, first), min(start + self.length, last)
                if end - begin > 1:
                    starts.append(begin)
                    lengths.append(end - begin)
        return torch.tensor(starts, dtype=torch.long), torch.tensor(lengths, dtype=torch.long)

    def __len__(self) -> int:
        counts = self.histories.counts()
        return max(1, -(-int(((counts > 1) * (-(-counts // self.step))).sum()) // self.batch_size))

    def __iter__(self) -> Iterator[Interaction]:
        starts, lengths = self.cuts()
        for rows in torch.randperm(len(starts), generator=self.generator).split(self.batch_size):
            history = take(self.histories.items, starts[rows], lengths[rows])
            yield Interaction({HISTORY: history, HISTORY_LENGTH: lengths[rows]})


class SequenceTrainer(Trainer):
    """RecBole's Trainer on :class:`Windows` in place of its interaction batches.

    ``learner: muon`` is known beside RecBole's own optimizers: TokenRec's, so that it can be asked of its rivals, too.
    """

    def __init__(self, config, model):
        super().__init__(config, model)
        length = model.max_length + model.window_overlap
        self.loader = Windows(model.histories, config["train_batch_size"], length, model.window_overlap)

    def _build_optimizer(self, **kwargs):
        if self.learner != "muon":
            return super()._build_optimizer(**kwargs)
        group = {"params": list(self.model.parameters()), "weight_decay": self.weight_decay}
        return Muon(with_matrices_apart([group], self.model), lr=self.learning_rate)

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self.loader.generator = generator_for(self.config["seed"], self.config["model"], epoch_idx)
        return super()._train_epoch(self.loader, epoch_idx, loss_func, show_progress)
