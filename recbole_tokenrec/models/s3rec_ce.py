"""S3-Rec (Zhou et al., 2020): SASRec whose encoder first learns from the sequences themselves.

``pretrain_epochs`` of four objectives with attention to both sides, as in the paper and its authors' code:

* MIP: a masked item is told from an item outside the window by the state at its place;
* SP: a masked segment is told from a segment of somebody's history by the state of what is left of the window;
* AAP and MAP: the attributes of the items shown and of the masked ones, where ``item_attribute`` names
  a column of the items; without it these two are left out (RecBole's S3Rec insists on one).

Then ``epochs`` of SASRecCE, validated as any other model, from the weights of the last epoch of pre-training. The
layers are RecBole's, and with an attribute the state of its S3Rec loads into this model. As there, each loss is a sum
over places; unlike there, sequences are left-aligned in both phases, so that a position means the same in both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from recbole.utils import FeatureType
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.models.sasrec_ce import SASRecCE
from recbole_tokenrec.models.sequence import SequenceTrainer, Windows
from recbole_tokenrec.options import Option
from recbole_tokenrec.training.loaders import HISTORY, HISTORY_LENGTH

_WEIGHT = Option(float, low=0)
_OPTIONS = {
    "pretrain_epochs": Option(int, low=0),
    "mask_ratio": Option(float, low=0, high=1, open_low=True),
    "mip_weight": _WEIGHT,
    "sp_weight": _WEIGHT,
    "aap_weight": _WEIGHT,
    "map_weight": _WEIGHT,
}
_DRAWS = 10  # of a negative; what is still in the window after as many stays, which nearly never happens


class Corrupted(NamedTuple):
    """What pre-training makes of B windows; all are (B, M) item numbers but ``masked``.

    Attributes:
        items: the windows with masked items; ``masked`` says where.
        negatives: an item outside the window where one is masked, 0 elsewhere.
        context: the windows with a masked segment.
        segment: that segment at its place, everything else of the window masked.
        other: a segment of somebody's history at the same place.
    """

    items: torch.Tensor
    masked: torch.Tensor
    negatives: torch.Tensor
    context: torch.Tensor
    segment: torch.Tensor
    other: torch.Tensor


class S3RecCE(SASRecCE):
    """See the module's docstring. The mask token is row ``n_items`` of the item table.

    Attributes:
        pretraining: which of the two losses ``calculate_loss`` is; the trainer switches.

    Raises:
        ConfigError: a key is out of its range, or ``item_attribute`` is no column of the items.
    """

    extra_items = 1

    options = {**SASRecCE.options, **_OPTIONS, "item_attribute": Option(str, optional=True)}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for key in _OPTIONS:
            setattr(self, key, config[key])
        size = config["hidden_size"]
        self.pretraining = False
        self.mip_norm, self.sp_norm = nn.Linear(size, size), nn.Linear(size, size)
        self.attributes = _attributes(dataset, config["item_attribute"])
        if self.attributes is not None:
            self.feature_embedding = nn.Embedding(self.attributes.shape[1], size)
            self.aap_norm, self.map_norm = nn.Linear(size, size), nn.Linear(size, size)
        self.apply(self._init_weights)

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Pre-training: the weighted objectives, summed over places, per window. Then SASRecCE's."""
        if not self.pretraining:
            return super().calculate_loss(interaction)
        history = interaction[HISTORY]
        return self.pretraining_loss(history, self.corrupt(history, interaction[HISTORY_LENGTH])) / len(history)

    def item_scores(self, states):
        return states @ self.item_embedding.weight[: self.n_items].T

    def corrupt(self, history: torch.Tensor, number: torch.Tensor) -> Corrupted:
        """Draw masks, segments and negatives for left-aligned windows (B, M) of ``number`` (B,) >= 2 items."""
        there = history > 0
        masked = (torch.rand(history.shape, device=history.device) < self.mask_ratio) & there
        inside = self._segments(number, history.shape[1])
        items = self.histories.items.to(history.device)
        first = _draw(len(items) - inside.sum(dim=1) + 1)
        source = first.unsqueeze(1) + (inside.cumsum(dim=1) - 1).clamp_min(0)  # (B, M)
        mask = self.n_items
        return Corrupted(
            items=history.masked_fill(masked, mask),
            masked=masked,
            negatives=self._negatives(history, masked),
            context=history.masked_fill(inside, mask),
            segment=history.masked_fill(there & ~inside, mask),
            other=torch.where(inside, items[source], history).masked_fill(there & ~inside, mask),
        )

    def pretraining_loss(self, history: torch.Tensor, drawn: Corrupted) -> torch.Tensor:
        """The weighted objectives, summed over the windows ``history`` (B, M) and their places."""
        everything = torch.cat([drawn.items, drawn.context, drawn.segment, drawn.other])
        states, *segments = self.states(everything, causal=False).chunk(4)  # (B, M, h) each
        hidden = states[drawn.masked]  # (n, h)
        asked = self.mip_norm(hidden)
        right = (asked * self.item_embedding(history[drawn.masked])).sum(dim=-1)
        wrong = (asked * self.item_embedding(drawn.negatives[drawn.masked])).sum(dim=-1)
        loss = self.mip_weight * _told_apart(right, wrong)

        last = (history > 0).sum(dim=1) - 1
        context, segment, other = (part[torch.arange(len(part), device=part.device), last] for part in segments)
        asked = self.sp_norm(context)  # (B, h)
        loss = loss + self.sp_weight * _told_apart((asked * segment).sum(dim=-1), (asked * other).sum(dim=-1))

        if self.attributes is None:
            return loss
        shown = (history > 0) & ~drawn.masked
        loss = loss + self.aap_weight * self._attribute_loss(self.aap_norm(states[shown]), history[shown])
        return loss + self.map_weight * self._attribute_loss(self.map_norm(hidden), history[drawn.masked])

    def _attribute_loss(self, asked: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of all attributes, summed. (n, h), (n,) -> ()"""
        target = self.attributes[items.cpu()].to(asked.device, asked.dtype)
        return F.binary_cross_entropy_with_logits(asked @ self.feature_embedding.weight.T, target, reduction="sum")

    @staticmethod
    def _segments(number: torch.Tensor, width: int) -> torch.Tensor:
        """(B, M) True in one segment of each window: 1 to half of its items long, anywhere in it."""
        length = 1 + _draw(number // 2)
        start = _draw(number - length + 1)
        places = torch.arange(width, device=number.device)
        return (places >= start.unsqueeze(1)) & (places < (start + length).unsqueeze(1))

    def _negatives(self, history: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """(B, M): where ``masked``, an item at random that is not in the window; 0 elsewhere."""
        windows = history[masked.nonzero()[:, 0]]  # (n, M)
        found = torch.randint(1, self.n_items, (len(windows),), device=history.device)
        for _ in range(_DRAWS):
            taken = (windows == found.unsqueeze(1)).any(dim=1)
            if not bool(taken.any()):
                break
            found[taken] = torch.randint(1, self.n_items, (int(taken.sum()),), device=history.device)
        return torch.zeros_like(history).masked_scatter(masked, found)


class S3RecCETrainer(SequenceTrainer):
    """Pre-training without validation, on windows that share no item; then as SASRecCE, with an optimiser of its own.

    A training that is resumed goes on inside the second phase; one that was killed in the first begins anew.
    """

    in_last_stage = False

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """RecBole's ``fit`` for each phase; the losses that are kept are those of the second."""
        model, epochs = self.model, self.epochs
        if self.start_epoch == 0 and model.pretrain_epochs:
            tuning = self.loader
            self.loader = Windows(model.histories, tuning.batch_size, model.max_length, 0)
            self.epochs, model.pretraining = model.pretrain_epochs, True
            super().fit(train_data, None, verbose, False, show_progress)
            self.loader, self.epochs, model.pretraining = tuning, epochs, False
            self.train_loss_dict.clear()
            self.optimizer = self._build_optimizer()
        self.in_last_stage = True
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)


def _told_apart(right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """The paper's estimate with one negative: -log softmax of two agreements in (0, 1), summed. (n,), (n,) -> ()"""
    return -F.logsigmoid(torch.sigmoid(right) - torch.sigmoid(wrong)).sum()


def _draw(below: torch.Tensor) -> torch.Tensor:
    """An integer in [0, below) for each entry of ``below`` (B,)."""
    share = torch.rand(below.shape, dtype=torch.float64, device=below.device)
    return (share * below.clamp_min(1)).long()


def _attributes(dataset, field: str | None) -> torch.Tensor | None:
    """(n_items, n_attributes) True where an item has an attribute; None where no column is named.

    Raises:
        ConfigError: the column is not loaded, or holds numbers.
    """
    if field is None or field == "":
        return None
    columns = [] if dataset.item_feat is None else [name for name in dataset.item_feat if name != dataset.iid_field]
    tokens = [name for name in columns if dataset.field2type[name] in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)]
    if field not in tokens:
        raise ConfigError(
            f"item_attribute: {field!r} is not allowed; allowed: empty, or a token or token_seq column of the .item "
            f"file that load_col names ({', '.join(tokens) or 'none is loaded'})"
        )
    numbers = dataset.item_feat[field].view(dataset.item_num, -1)  # 0 is padding
    found = torch.zeros(dataset.item_num, dataset.num(field), dtype=torch.bool)
    return found.scatter_(1, numbers, True)[:, 1:]
