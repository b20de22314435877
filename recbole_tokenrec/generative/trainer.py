"""RecBole's Trainer with what P5's training needs besides: a learning-rate schedule, AdamW that spares biases and
norms from decay, stages, and checkpoints that carry the backbone and the item IDs."""

from __future__ import annotations

import torch
from recbole.trainer import Trainer
from recbole.utils import set_color

from recbole_tokenrec.checkpoints import plain_config, save_checkpoint
from recbole_tokenrec.generative.cuts import Cuts
from recbole_tokenrec.snapshot import DataSnapshot
from recbole_tokenrec.training.adamw import adamw
from recbole_tokenrec.training.loaders import derived_seed


class GenerativeTrainer(Trainer):
    """``warmup_ratio`` of the steps the rate rises linearly to ``learning_rate``, then falls linearly to 0.

    The batches are :class:`.Cuts` of the training histories, in place of RecBole's. The rate is a function of the
    step's number alone, and all random numbers (cuts, templates, dropout, negatives) are seeded anew in each epoch, so
    that a resumed run goes on as an uninterrupted one.
    """

    in_last_stage = False
    snapshot = None  # raw ids and histories, once ``fit`` has seen the data

    def __init__(self, config, model):
        super().__init__(config, model)
        self.batches = Cuts(
            model.histories,
            config["train_batch_size"],
            model.targets_per_prompt,
            model.max_history,
            (model.USER_ID, model.ITEM_ID),
            torch.Generator(),
        )

    def fit(self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None):
        """The model's earlier stages without validation, then the last one with it. As RecBole's otherwise."""
        self.snapshot = DataSnapshot.from_dataset(train_data._dataset, self.model.histories).payload()
        last = self.epochs
        for enter, epochs in self.model.prepare(train_data, valid_data) if self.start_epoch == 0 else []:
            enter()
            self.epochs = epochs
            self._begin()
            super().fit(train_data, None, verbose, False, show_progress)
        self.epochs, self.in_last_stage = last, True
        self.train_loss_dict.clear()  # of the stages before
        self.model.enter_last_stage()
        state = self.optimizer.state_dict() if self.start_epoch else None
        self._begin()
        if state:
            self.optimizer.load_state_dict(state)
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def _begin(self) -> None:
        """A new optimizer over what is to be trained, and the schedule from its first step on."""
        self._steps, self._total = 0, max(self.epochs * len(self.batches), 1)
        self.optimizer = self._build_optimizer()
        self.optimizer.register_step_post_hook(lambda *_: self._set_rate(self._steps + 1))

    def _build_optimizer(self, **kwargs):
        """AdamW with eps 1e-6 (the reference's); no decay on vectors, i.e. biases and norms.

        Embeddings have ``embedding_lr_ratio`` times the rate: T5 starts them ten times as large as its matrices, and
        its own optimiser, Adafactor, moves a parameter in proportion to its size.
        """
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        width = self.model.backbone.config.d_model  # tables of vectors, not T5's small ones of position biases
        modules = [module for module in self.model.modules() if isinstance(module, torch.nn.Embedding)]
        tables = {module.weight for module in modules if module.embedding_dim == width}
        ratio = self.config["embedding_lr_ratio"]
        groups = [
            {"params": [p for p in trained if p in tables], "weight_decay": self.weight_decay, "ratio": ratio},
            {"params": [p for p in trained if p.dim() > 1 and p not in tables], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [{"ratio": 1.0, **group} for group in groups if group["params"]]
        return adamw(groups, lr=self.learning_rate, eps=1e-6)

    def _set_rate(self, step: int) -> None:
        self._steps = step
        for group in self.optimizer.param_groups:
            group["lr"] = group["ratio"] * self.learning_rate * rate(step, self._total, self.config["warmup_ratio"])

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        seed = derived_seed(self.config["seed"], "generative", self._total, epoch_idx)
        torch.manual_seed(seed)
        self.batches.generator.manual_seed(seed)
        self._set_rate(epoch_idx * len(self.batches))
        return super()._train_epoch(self.batches, epoch_idx, loss_func, show_progress) / len(self.batches)

    def resume_checkpoint(self, resume_file):
        self.model.enter_last_stage()  # a checkpoint is of that stage, and so is its optimizer
        self.optimizer = self._build_optimizer()
        super().resume_checkpoint(resume_file)

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        config = plain_config(self.config)
        config["config_dict"]["llm_backbone_state"] = self.model.backbone_state
        save_checkpoint(
            path,
            {
                "config": config,
                "epoch": epoch,
                "cur_step": self.cur_step,
                "best_valid_score": self.best_valid_score,
                "state_dict": self.model.state_dict(),
                "other_parameter": self.model.other_parameter(),
                "optimizer": self.optimizer.state_dict(),
                "data": self.snapshot,
            },
        )
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")


def rate(step: int, total: int, warmup_ratio: float) -> float:
    """The share of the peak rate at ``step`` of ``total``; the first step is above 0, the last one too."""
    warmup = int(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(total - step, 1) / max(total - warmup, 1)
