"""``--resume`` for models that RecBole's own training loop trains, its own and ours.

RecBole's ``resume_checkpoint`` goes on from the best epoch, with other random numbers: the result is not that of an
uninterrupted run. Here the state is written when an epoch is about to begin: weights, optimiser, early stopping, and
the state of every random number generator (Python's, numpy's, torch's, CUDA's, the loader's). It is one file, written
whole or not at all, named by a hash of all that the training depends on; see ``progress.py`` for TokenRec's own.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer

from recbole_tokenrec.checkpoints import load_checkpoint, save_checkpoint
from recbole_tokenrec.errors import CheckpointError, TrainingError
from recbole_tokenrec.generative.trainer import GenerativeTrainer
from recbole_tokenrec.models.s3rec_ce import S3RecCETrainer
from recbole_tokenrec.training.progress import Clock, resume_options

_LOOPS = (Trainer.fit, GenerativeTrainer.fit, S3RecCETrainer.fit)


class ResumableTraining:
    """Keeps and takes up the state of one RecBole trainer.

    Args:
        trainer: a RecBole trainer that has not been fitted yet.
        train_data: its loader.
        identity: a hash of all that the result depends on: settings, data, versions.

    Attributes:
        seconds, cpu_seconds: spent on the training by processes before this one.
        loss: of each epoch of theirs.
        valid: whatever the caller notes of each validation, theirs first; it is kept with the state.
    """

    def __init__(self, trainer, train_data, identity: str):
        resume, every = resume_options(trainer.config)
        self.trainer, self.train_data, self.clock = trainer, train_data, Clock(every)
        self.path = Path(trainer.checkpoint_dir) / "resume" / f"{trainer.config['model']}-{identity}.pt"
        self._random, self._epoch_now = None, 0
        self.seconds, self.cpu_seconds, self.loss, self.valid = 0.0, 0.0, [], []
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        trainer._check_nan = self._check_finite
        if type(trainer).fit not in _LOOPS:
            return  # a loop of its own, e.g. with pre-training, whose state we do not know: it starts anew
        if resume and self.path.exists():
            self._take_up(load_checkpoint(self.path, map_location="cpu"))
        self._train_epoch, trainer._train_epoch = trainer._train_epoch, self._epoch

    def forget(self) -> None:
        """The result is written: the state is of no use any more."""
        self.path.unlink(missing_ok=True)

    def _check_finite(self, loss) -> None:
        """In place of RecBole's check, which lets infinity pass and does not say where."""
        if bool(torch.isfinite(loss).all()):
            return
        trainer = self.trainer
        kept = math.isfinite(trainer.best_valid_score) and Path(trainer.saved_model_file).is_file()
        raise TrainingError(
            f"{trainer.config['model']}: the loss is {float(loss.detach())} in epoch {self._epoch_now}"
            + (f"; the best state so far is kept in {trainer.saved_model_file}" if kept else "")
            + f"; lower learning_rate ({trainer.learning_rate})"
        )

    def _epoch(self, train_data, epoch_idx, *args, **kwargs):
        self._epoch_now = epoch_idx
        if self._random is not None:
            self._set_random(self._random)
            self._random = None
        elif epoch_idx > 0 and getattr(self.trainer, "in_last_stage", True) and self.clock.due():
            with self.clock.writing():
                save_checkpoint(self.path, self._payload(epoch_idx))
        return self._train_epoch(train_data, epoch_idx, *args, **kwargs)

    def _payload(self, epoch: int) -> dict:
        trainer = self.trainer
        return {
            "epoch": epoch,
            "cur_step": trainer.cur_step,
            "best_valid_score": float(trainer.best_valid_score),
            "best_valid_result": None if trainer.best_valid_result is None else dict(trainer.best_valid_result),
            "state_dict": trainer.model.state_dict(),
            "other_parameter": trainer.model.other_parameter(),
            "optimizer": trainer.optimizer.state_dict(),
            "best_checkpoint": trainer.saved_model_file,
            "random": self._get_random(),
            "seconds": self.seconds + time.perf_counter() - self._began,
            "cpu_seconds": self.cpu_seconds + time.process_time() - self._cpu_began,
            "loss": self.all_losses(),
            "valid": self.valid,
        }

    def all_losses(self) -> list[float]:
        """Of each epoch so far."""
        return self.loss + [float(loss) for loss in self.trainer.train_loss_dict.values()]

    def _take_up(self, payload: dict) -> None:
        trainer = self.trainer
        if math.isfinite(payload["best_valid_score"]) and not Path(payload["best_checkpoint"]).is_file():
            raise CheckpointError(
                f"{self.path}: the checkpoint of the best epoch, {payload['best_checkpoint']}, is gone; "
                "delete the state to start anew"
            )
        try:
            if isinstance(trainer, GenerativeTrainer):  # the state is of the last stage, and so is its optimiser
                trainer.model.enter_last_stage()
                trainer.optimizer = trainer._build_optimizer()
            trainer.model.load_state_dict(payload["state_dict"])
            trainer.model.load_other_parameter(payload["other_parameter"])
            trainer.optimizer.load_state_dict(payload["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.path}: the state does not fit the model ({error})") from error
        trainer.start_epoch, trainer.cur_step = payload["epoch"], payload["cur_step"]
        trainer.best_valid_score, trainer.best_valid_result = payload["best_valid_score"], payload["best_valid_result"]
        trainer.saved_model_file = payload["best_checkpoint"]
        self._random = payload["random"]
        self.seconds, self.cpu_seconds = payload["seconds"], payload["cpu_seconds"]
        self.loss, self.valid = list(payload["loss"]), list(payload["valid"])

    def _get_random(self) -> dict:
        name, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "loader": self.train_data.generator.get_state(),
        }

    def _set_random(self, state: dict) -> None:
        name, keys, *rest = state["numpy"]
        random.setstate(state["python"])
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        self.train_data.generator.set_state(state["loader"])
