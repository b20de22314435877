"""RecBole's Trainer for a model whose batches are users: LightGCNSoftmax on its own, as a baseline.

Inside TokenRec the same model is trained by the collaborative stage; batches, optimiser and schedule are the same.
"""

from __future__ import annotations

import torch
from recbole.trainer import Trainer

from recbole_tokenrec.training.adamw import adamw
from recbole_tokenrec.training.loaders import generator_for
from recbole_tokenrec.training.steps import learning_rate_at


class _Epoch:
    """One epoch's batches, as RecBole's training loop takes them."""

    shuffle = False

    def __init__(self, loader, generator: torch.Generator, before_step):
        self.loader, self.generator, self.before_step = loader, generator, before_step

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for interaction in self.loader.epoch(self.generator):
            self.before_step()
            yield interaction


class LightGCNSoftmaxTrainer(Trainer):
    """AdamW with a cosine schedule over all steps, on user-major batches in place of RecBole's."""

    def __init__(self, config, model):
        super().__init__(config, model)
        self.loader = model.training_batches(config["train_batch_size"])
        self.steps = 0

    def _build_optimizer(self, **kwargs):
        return adamw(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def _before_step(self) -> None:
        rate = self.learning_rate * learning_rate_at(self.steps, self.epochs * len(self.loader), 0.05, "cosine")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.steps += 1

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        self.steps = epoch_idx * len(self.loader)
        generator = generator_for(self.config["seed"], "cf", epoch_idx)
        batches = _Epoch(self.loader, generator, self._before_step)
        return super()._train_epoch(batches, epoch_idx, loss_func, show_progress)
