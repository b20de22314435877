"""The cache of finished stages (design decision 7).

An entry's name is a hash of all that its result depends on: the data and its split, the seed, the options of the
stage and of the stages before it, the versions of torch and of this package, and its code (``sources.py``). So a sweep
over K, L or the backbone trains LightGCN once, and an entry made for anything else has another name and is never found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import torch

from recbole_tokenrec.checkpoints import load_checkpoint, save_checkpoint
from recbole_tokenrec.errors import CheckpointError
from recbole_tokenrec.files import exclusive
from recbole_tokenrec.histories import Histories


def data_fingerprint(model, valid_data) -> str:
    """Hash of the training histories and of the validation items that select the best epoch."""
    digest = hashlib.sha256(f"{model.n_users}/{model.n_items}".encode())
    digest.update(model.histories.indptr.numpy().tobytes())
    digest.update(model.histories.items.numpy().tobytes())
    if valid_data is not None:
        held_out = Histories.from_dataset(valid_data._dataset)
        digest.update(held_out.indptr.numpy().tobytes())
        digest.update(held_out.items.numpy().tobytes())
    return digest.hexdigest()[:16]


class StageCache:
    """Finished stages in one folder.

    Args:
        folder: where entries lie; None caches nothing.
        context: what every stage depends on: data fingerprint, seed, evaluation settings, versions.
    """

    def __init__(self, folder, context: dict):
        self.folder = None if folder is None else Path(folder)
        self.context = context

    def name(self, what: str, determinants: dict) -> str:
        """A file name that holds a hash of the context and of ``determinants``."""
        text = json.dumps([self.context, what, determinants], sort_keys=True, default=str)
        return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.pt"

    def path(self, stage) -> Path:
        return self.folder / self.name(stage.name, stage.determinants())

    def exclusive(self, stage):
        """``with cache.exclusive(stage):`` of trainings side by side one makes the entry, the others wait for it."""
        if self.folder is None:
            return contextlib.nullcontext()
        return exclusive(self.folder / f"{self.path(stage).stem}.lock")

    def load(self, stage) -> dict | None:
        """The stage's report if it was restored, else None. A damaged entry counts as none and is replaced."""
        if self.folder is None or not self.path(stage).exists():
            return None
        try:
            payload = load_checkpoint(self.path(stage))
            report = payload["report"]
            stage.restore(payload["product"])
        except (CheckpointError, RuntimeError, KeyError, TypeError, AttributeError):
            return None
        return report

    def save(self, stage, report: dict) -> None:
        if self.folder is None:
            return
        save_checkpoint(self.path(stage), finished_entry(stage, report))


def finished_entry(stage, report: dict) -> dict:
    """What is kept of a finished stage: tensors on CPU and its report."""
    product = {key: value.detach().cpu() for key, value in stage.product().items() if torch.is_tensor(value)}
    return {"product": product, "report": report}
