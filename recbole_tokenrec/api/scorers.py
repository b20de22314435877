"""How a model finds the best items for users: one class for each way, all with the contract of :class:`Scorer`.

A scorer never changes once it is made. ``Recommender.update`` makes another one and swaps it in.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_tokenrec.histories import Histories
from recbole_tokenrec.models.sequence import SequenceModel
from recbole_tokenrec.retrieval import ItemIndex
from recbole_tokenrec.snapshot import DataSnapshot


class Scorer:
    """Attributes:
        model: in evaluation mode.
        data: raw ids and histories.
        takes_new_users: whether :meth:`top_new` can be asked.
    """

    takes_new_users = False

    def __init__(self, model, data: DataSnapshot):
        self.model, self.data = model.eval(), data

    def top(self, users: torch.Tensor, k: int, exclude, candidates) -> tuple[torch.Tensor, torch.Tensor]:
        """The best items of trained users (B,): items (B, k), scores (B, k); see :meth:`ItemIndex.search`."""
        raise NotImplementedError

    def top_new(self, histories: Histories, k: int, exclude, candidates) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for users who are known by their histories alone."""
        raise NotImplementedError


class VectorScorer(Scorer):
    """Users are vectors, items are found by an index: TokenRec and LightGCNSoftmax."""

    def __init__(self, model, data: DataSnapshot, index: ItemIndex):
        super().__init__(model, data)
        self.index = index

    @torch.no_grad()
    def top(self, users, k, exclude, candidates):
        return self.index.search(self.queries(users), k, exclude, candidates)

    @torch.no_grad()
    def top_new(self, histories, k, exclude, candidates):
        return self.index.search(self.queries_new(histories), k, exclude, candidates)

    def queries(self, users: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, d)."""
        raise NotImplementedError

    def queries_new(self, histories: Histories) -> torch.Tensor:
        """One vector for each user of ``histories``: (n_users, d)."""
        raise NotImplementedError


class TokenRecScorer(VectorScorer):
    """z of Eq. 18 against the item vectors. New users: fold-in, frozen user tokenizer, prompt, language model.

    Args:
        index_of: makes an index of the same kind for other item vectors (n, d).
    """

    def __init__(self, model, data: DataSnapshot, index: ItemIndex, index_of: Callable[[torch.Tensor], ItemIndex]):
        super().__init__(model, data, index)
        self.index_of = index_of

    @property
    def takes_new_users(self) -> bool:
        return hasattr(self.model.collaborative, "fold_in")

    def queries(self, users):
        return self.model.encode_users(users.to(self.model.item_vectors.device))

    def queries_new(self, histories):
        model = self.model
        codes = model.user_tokenizer.encode_all(model.tokenizer_inputs(fold_in(model.collaborative, histories)))
        return twin(model, user_codes=codes, evaluation_histories=histories).encode_users(
            torch.arange(histories.n_users, device=codes.device)
        )


class LightGCNSoftmaxScorer(VectorScorer):
    """The collaborative stage alone."""

    takes_new_users = True

    def __init__(self, model, data, index_of):
        with torch.no_grad():
            self.user_vectors, items = model.forward()
        super().__init__(model, data, index_of(items))

    def queries(self, users):
        return self.user_vectors[users.to(self.user_vectors.device)]

    def queries_new(self, histories):
        return fold_in(self.model, histories)


class FullSortScorer(Scorer):
    """Any model of RecBole's, by its ``full_sort_predict`` (or by ``predict`` for every item, where it has none).

    Such models keep tables and hooks between calls: one thread at a time asks them.

    Args:
        dataset: RecBole's, whose user and item columns the model may read; None for our models, which need numbers
            only. For sequential models that of the test split: its rows hold the users' sequences.
        memory_budget_gb: what the scores of one batch of users may take.
    """

    def __init__(self, model, data: DataSnapshot, dataset=None, memory_budget_gb: float = 2.0):
        super().__init__(model, data)
        self.dataset, self._alone = dataset, threading.Lock()
        self.users_per_batch = int(min(max(1, memory_budget_gb * 2**30 / (8 * data.item_num)), 1024))
        self.takes_new_users = isinstance(model, SequenceModel)

    def top(self, users, k, exclude, candidates):
        return self._top(self.model, users, k, exclude, candidates)

    def top_new(self, histories, k, exclude, candidates):
        model = twin(self.model, histories=histories)
        return self._top(model, torch.arange(histories.n_users), k, exclude, candidates)

    @torch.no_grad()
    def _top(self, model, users, k, exclude, candidates):
        n_items = self.data.item_num
        found = torch.zeros(len(users), k, dtype=torch.long)
        best = torch.full((len(users), k), -torch.inf)
        closed = torch.ones(n_items, dtype=torch.bool) if candidates is not None else torch.zeros(n_items).bool()
        if candidates is not None:
            closed[candidates] = False
        closed[0] = True
        for start in range(0, len(users), self.users_per_batch):
            part = users[start : start + self.users_per_batch]
            with self._alone:
                scores = self._scores(model, part, k, exclude is not None, candidates).view(len(part), n_items)
            scores = scores.float().cpu()
            scores[:, closed] = -torch.inf
            if exclude is not None:
                here = (exclude[0] >= start) & (exclude[0] < start + len(part))
                scores[exclude[0][here] - start, exclude[1][here]] = -torch.inf
            value, item = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf).topk(min(k, n_items), dim=1)
            best[start : start + len(part), : value.shape[1]] = value
            found[start : start + len(part), : value.shape[1]] = item.masked_fill(value == -torch.inf, 0)
        return found, best

    def _scores(self, model, users: torch.Tensor, k: int, exclude_seen: bool, candidates) -> torch.Tensor:
        """Scores of all items, flat (B * n_items,); what is excluded, or no candidate, is hidden afterwards."""
        field, dataset = self.data.uid_field, self.dataset
        if dataset is None:
            rows = Interaction({field: users})
        elif model.type == ModelType.SEQUENTIAL:
            rows = dataset[(dataset.inter_feat[field] == users.unsqueeze(1)).nonzero(as_tuple=True)[1]]
        else:
            rows = dataset.join(Interaction({field: users}))
        rows = rows.to(model.device)
        try:
            return model.full_sort_predict(rows)
        except NotImplementedError:  # context-aware models
            rows = rows.repeat_interleave(dataset.item_num)
            rows.update(dataset.get_item_feature().to(model.device).repeat(len(users)))
            return model.predict(rows)


class GenerativeScorer(FullSortScorer):
    """P5, CID, POD, CoLLM: as many beams as items are wanted; given candidates are ranked by their log-probability."""

    def _scores(self, model, users, k, exclude_seen, candidates):
        if candidates is None:
            beams = min(max(k, model.num_beams), model.n_items - 1)
            return model.beam_scores(users.tolist(), beams, exclude_seen)
        pairs = {
            model.USER_ID: users.repeat_interleave(len(candidates)),
            model.ITEM_ID: candidates.repeat(len(users)),
        }
        scores = torch.full((len(users), model.n_items), -torch.inf, device=model.device)
        found = model.predict(Interaction(pairs).to(model.device))
        scores[:, candidates.to(model.device)] = found.view(len(users), -1).to(scores)
        return scores


def fold_in(collaborative, histories: Histories) -> torch.Tensor:
    """Vectors (n_users, d) that a collaborative model's frozen tables make of ``histories``."""
    device = next(collaborative.parameters()).device
    rows, items, ages = (part.to(device) for part in (histories.rows(), histories.items, histories.ages()))
    return collaborative.fold_in(rows, items, ages, histories.n_users)


def twin(model: torch.nn.Module, **changed) -> torch.nn.Module:
    """A second model of the same modules, in which the attributes and buffers ``changed`` differ; no weight is copied.

    Whoever uses ``model`` meanwhile notices nothing.
    """
    other = copy.copy(model)
    other._buffers, other._modules = dict(model._buffers), dict(model._modules)
    for name, value in changed.items():
        setattr(other, name, value)
    return other
