"""Training without a group of users, for ``experiment generalize``.

The group's interactions are taken out of the training data, its validation items out of those that choose an epoch.
How much of the training that concerns is the question of two rules:

    folded in   all stages. Afterwards the frozen item tables make the group's representations: no weight changes.
    updated     tokenizers and language model only, as in the paper (Section 3.3): the collaborative stage is trained
                on everybody. Two models share it then: a first one, of everybody, trains it and stops; the second, of
                the others, takes it over, with the representations of the group's users left blank.

Under both rules the group's vectors, tokens and histories are then put in, and everybody is ranked for.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.utils import get_model, get_trainer, init_seed

from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.models.tokenrec import COLLABORATIVE
from recbole_tokenrec.pipeline import describe_data, start_logging, versions
from recbole_tokenrec.ranks import users_of, with_ranks
from recbole_tokenrec.training.cache import data_fingerprint
from recbole_tokenrec.training.trainer import TokenRecTrainer


def left_out_users(counts: torch.Tensor, group: str, share: float, seed: int) -> torch.Tensor:
    """User numbers (n,) to leave out. ``counts`` (n_users,): training items of each; users with fewer than two stay.

    Ties of the least history are broken at random, by ``seed``.
    """
    users = (counts > 1).nonzero().squeeze(1)
    shuffled = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))]
    if group == "least":
        shuffled = shuffled[torch.argsort(counts[shuffled], stable=True)]
    return shuffled[: max(1, round(share * len(users)))].sort().values


def train_without(config, group: str, share: float, updated: bool) -> dict:
    """Train without the group, give it representations and tokens, rank for everybody; returns the record.

    ``updated``: the collaborative stage is trained on everybody.
    """
    init_seed(config["seed"], config["reproducibility"])
    start_logging(config)
    dataset, (train_data, valid_data, test_data) = load_data(config)
    entry = describe_data(config, dataset, train_data)
    everything = Histories.from_dataset(train_data._dataset)
    users = left_out_users(everything.counts(), group, share, config["seed"])
    everybodys = _collaborative_stage(config, train_data, valid_data) if updated else None

    train_data._dataset = _without(train_data._dataset, users)
    others = type(valid_data)(valid_data.config, _without(valid_data._dataset, users), valid_data._sampler)
    model = _new_model(config, train_data)
    if updated:
        trainer = _OtherStages(config, model, everybodys, users)
    else:
        trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    trainer.fit(train_data, others, verbose=False, saved=False, show_progress=config["show_progress"])
    fold_in(model, everything, users)
    ranks, evaluated = {}, {}
    for split, data in (("valid", valid_data), ("test", test_data)):
        _, ranks[split] = with_ranks(trainer, data, lambda d: trainer.evaluate(d, load_best_model=False))
        evaluated[split] = np.sort(users_of(data)).tolist()
    return {
        "data": entry,
        "seed": int(config["seed"]),
        "users": users.tolist(),
        "ranks": ranks,
        "evaluated": evaluated,
        "items_of_user": everything.counts()[users].float().mean().item(),
        "versions": versions(),
    }


def fold_in(model, histories: Histories, users: torch.Tensor) -> None:
    """Let a trained TokenRec know ``users`` (n,), and everybody, by ``histories`` from now on."""
    model.fold_in(histories, users)
    model.histories = model.evaluation_histories = histories


def _without(dataset, users: torch.Tensor):
    features = dataset.inter_feat
    return dataset.copy(features[~torch.isin(features[dataset.uid_field], users)])


def _new_model(config, train_data):
    init_seed(config["seed"], config["reproducibility"])
    return get_model("TokenRec")(config, train_data._dataset).to(config["device"])


def _collaborative_stage(config, train_data, valid_data) -> TokenRecTrainer:
    """The trainer of a model of everybody, after the collaborative stage (or taken from the stage cache)."""
    trainer = _CollaborativeStageAlone(config, _new_model(config, train_data))
    trainer.fit(train_data, valid_data, verbose=False, saved=False, show_progress=config["show_progress"])
    return trainer


class _CollaborativeStageAlone(TokenRecTrainer):
    def _trained_or_restored(self, stage, cache, callback_fn):
        if stage.phase == COLLABORATIVE:
            return super()._trained_or_restored(stage, cache, callback_fn)
        return {"valid_score": None, "valid": None}  # left to the second model


class _OtherStages(TokenRecTrainer):
    """Takes the collaborative stage over from ``everybodys`` trainer; ``users`` (n,) stay unknown to the others."""

    def __init__(self, config, model, everybodys: TokenRecTrainer, users: torch.Tensor):
        super().__init__(config, model)
        model.collaborative = everybodys.model.collaborative
        self._everybodys, self._users = everybodys, users

    def _stage_cache(self, valid_data):
        """Names of their own: an ordinary training on the same data has another collaborative stage."""
        cache = super()._stage_cache(valid_data)
        cache.context["collaborative"] = data_fingerprint(self._everybodys.model, self._everybodys.valid_data)
        return cache

    def _trained_or_restored(self, stage, cache, callback_fn):
        if stage.phase != COLLABORATIVE:
            return super()._trained_or_restored(stage, cache, callback_fn)
        self.model.refresh_representations()
        self.model.user_vectors[self._users] = 0  # as users without a history have them
        return self._everybodys.reports[stage.name]
