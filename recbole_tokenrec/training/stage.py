"""What the trainer asks of a stage; ``stages.py`` has the stages themselves.

``TokenRecTrainer`` runs the loop and knows nothing of what is trained: it asks for batches, an optimizer and a
schedule, tells when an epoch, a step or a validation begins or ends, and keeps the state of ``part``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from recbole_tokenrec.training.adamw import adamw


class Stage:
    """What the trainer asks of a stage.

    Attributes:
        name: of its cache entry, its random numbers and its report.
        phase: value of ``model.stage`` while it runs.
        title: for people.
        prefix: of its keys: ``<prefix>_epochs``, ``<prefix>_learning_rate``, ``<prefix>_weight_decay`` …
        validates: whether validation NDCG decides the best epoch.
    """

    name = title = prefix = ""
    validates = False
    clip_grad_norm = 0.0
    warmup_ratio = 0.0
    lr_decay = "constant"

    def __init__(self, model, train_data):
        self.model = model
        self.settings = model.settings
        self.train_data = train_data
        self.seed = model.seed

    def option(self, name: str):
        """This stage's value of a key that several stages have, e.g. ``option("epochs")``."""
        return getattr(self.settings, f"{self.prefix}_{name}")

    @property
    def phase(self) -> str:
        return self.name

    @property
    def part(self) -> torch.nn.Module:
        """The module that is trained; its state is what the best epoch keeps."""
        raise NotImplementedError

    def epochs(self) -> int:
        return self.option("epochs")

    def steps_per_epoch(self) -> int:
        raise NotImplementedError

    def start(self) -> None:
        """Called once before the first epoch, with the stage's random numbers."""

    def parameter_groups(self) -> list[dict]:
        """What the optimizer trains: weight decay on matrices, none on biases, norms and embeddings."""
        tables = {id(m.weight) for m in self.part.modules() if isinstance(m, torch.nn.Embedding)}
        groups = {True: [], False: []}
        for parameter in self.part.parameters():
            groups[parameter.dim() > 1 and id(parameter) not in tables].append(parameter)
        decay = self.option("weight_decay")
        return [{"params": ps, "weight_decay": decay if matrix else 0.0} for matrix, ps in groups.items() if ps]

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one over :meth:`parameter_groups`, at the peak learning rate."""
        return adamw(self.parameter_groups(), lr=self.option("learning_rate"))

    def batches(self, epoch: int) -> Iterable:
        raise NotImplementedError

    def before_epoch(self, epoch: int) -> None:
        """Called with the model in training mode."""

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """Scalars for TensorBoard."""
        return {}

    def after_step(self) -> None:
        """Called after each optimiser step."""

    def before_validation(self) -> None:
        """Called before the model's scores are read; ``part`` then is what the best epoch keeps."""

    def after_validation(self) -> None:
        """Called before training goes on."""

    def unjudged(self) -> dict:
        """The part's state to keep where nothing was validated: a copy."""
        return copy.deepcopy(self.part.state_dict())

    def state_beside_part(self) -> dict:
        """Tensors and plain data that training changes and ``part`` does not hold; a resumed stage gets them back."""
        return {}

    def restore_beside_part(self, state: dict) -> None:
        """Inverse of :meth:`state_beside_part`."""

    def finish(self) -> dict:
        """Called once the part holds its final state; returns what the result file reports."""
        return {}

    def determinants(self) -> dict:
        """Options that the stage's result depends on, its predecessors' included."""
        raise NotImplementedError

    def product(self) -> dict[str, torch.Tensor]:
        """What a cache entry holds."""
        return dict(self.part.state_dict())

    def restore(self, product: dict[str, torch.Tensor]) -> None:
        """Load what :meth:`product` gave."""
        self.part.load_state_dict(product)
