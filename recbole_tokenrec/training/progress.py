"""Where a killed training of TokenRec goes on: ``--resume``.

While a stage is trained, :class:`StageState` holds all that changes: weights, optimiser, schedule, averaged weights,
best state, early stopping. :class:`Progress` writes it at the end of an epoch, whole or not at all, into
``checkpoint_dir/resume``; the file of the epoch before is there until the new one is complete. Random numbers need no
room in it: every epoch starts from numbers made of (seed, stage, epoch).

A file's name is a hash of all that its stage depends on, as in the stage cache: a state made for other data, another
seed or other options has another name, and is never found. The files are written with or without ``--resume``, which
only says whether they are read; ``checkpoint_every_seconds`` says how often.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from pathlib import Path

import torch

from recbole_tokenrec.checkpoints import load_checkpoint, save_checkpoint, seal_of
from recbole_tokenrec.errors import CheckpointError, ConfigError
from recbole_tokenrec.training.cache import StageCache, finished_entry

# A write that takes a second is repeated after 20 at the earliest: at most a twentieth of the time goes into writing.
_SHARE_OF_TIME = 20


def resume_options(config) -> tuple[bool, float | None]:
    """The keys ``resume`` and ``checkpoint_every_seconds`` (None: never), checked.

    Raises:
        ConfigError: one of them has a value that is not allowed.
    """
    resume, every = config["resume"], config["checkpoint_every_seconds"]
    if not isinstance(resume, (bool, type(None))):
        raise ConfigError(f"resume: {resume!r} is not allowed; allowed: true or false")
    number = isinstance(every, (int, float)) and not isinstance(every, bool) and 0 <= every < math.inf
    if every is not None and not number:
        raise ConfigError(
            f"checkpoint_every_seconds: {every!r} is not allowed; allowed: float in [0, inf) or empty"
        )
    return bool(resume), every


class Clock:
    """Says when the next state is due: ``every`` seconds after the last write, 0 is always, None is never."""

    def __init__(self, every: float | None):
        self.every = every
        self._next = time.monotonic() + (every or 0)

    def due(self) -> bool:
        return self.every is not None and time.monotonic() >= self._next

    @contextlib.contextmanager
    def writing(self):
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self._next = ended + (max(self.every, _SHARE_OF_TIME * (ended - began)) if self.every else 0)


class StageState:
    """What changes while a stage is trained.

    Attributes:
        epoch: the next one to run.
        best_score, best_epoch, best_valid, best_part: of the best validation so far; best_part is a state_dict.
        waited: validations since.
        loss: mean loss of the last epoch.
        seconds: spent on the stage before this process took it over.
    """

    _KEPT = ("epoch", "best_score", "best_epoch", "best_valid", "best_part", "waited", "loss", "seconds")

    def __init__(self, stage, optimizer, schedule, bigger: bool):
        self.stage, self.optimizer, self.schedule = stage, optimizer, schedule
        self.epoch, self.waited, self.loss, self.seconds = 0, 0, math.nan, 0.0
        self.best_score = -math.inf if bigger else math.inf
        self.best_epoch, self.best_valid, self.best_part = -1, None, None
        self.began = time.perf_counter()
        self._good, self._good_epoch = None, None

    def remember_good(self) -> None:
        """The weights are finite: as long as no validation has kept any, these are what one can fall back to."""
        if self.best_part is None:
            self._good, self._good_epoch = copy.deepcopy(self.stage.part.state_dict()), self.epoch - 1
        else:
            self._good = None

    def put_good_back(self) -> int | None:
        """Load the best or else the last good weights into the stage's part; their epoch, None if there are none."""
        part, epoch = self._good, self._good_epoch
        if self.best_part is not None:
            part, epoch = self.best_part, self.best_epoch
        if part is None:
            return None
        self.stage.part.load_state_dict(part)
        return epoch

    def payload(self) -> dict:
        """All of it as tensors and plain data."""
        kept = {name: getattr(self, name) for name in self._KEPT}
        kept["seconds"] += time.perf_counter() - self.began
        return {
            **kept,
            "part": self.stage.part.state_dict(),
            "beside": self.stage.state_beside_part(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, payload: dict) -> None:
        """Inverse of :meth:`payload`, for a stage that has just been started."""
        self.stage.part.load_state_dict(payload["part"])
        self.stage.restore_beside_part(payload["beside"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.schedule.load_state_dict(payload["schedule"])
        for name in self._KEPT:
            setattr(self, name, payload[name])


class Progress:
    """The files of one training under ``folder``.

    Args:
        folder: ``checkpoint_dir/resume``.
        cache: the stage cache, which names files and keeps finished stages if it is on.
        resume: whether files of an earlier process are read.
        every: least seconds between two writes; None writes nothing.
        determinants: every option of the training, by which its end is found again.
    """

    def __init__(self, folder, cache: StageCache, resume: bool, every: float | None, determinants: dict):
        self.folder, self.cache, self.resume, self.every = Path(folder), cache, resume, every
        self.clock = Clock(every)
        self._end = self.folder / cache.name("finished", determinants)

    def path(self, stage) -> Path:
        return self.folder / self.cache.name(stage.name, stage.determinants())

    # ---- inside a stage ---------------------------------------------------------------------------------------

    def take_up(self, state: StageState) -> bool:
        """Put ``state`` where an earlier process left it; whether there was anything to take up.

        Raises:
            CheckpointError: the file cannot be used; nothing is trained over it, so that no work is lost.
        """
        path = self.path(state.stage)
        if not self.resume or not path.exists():
            return False
        payload = load_checkpoint(path)
        try:
            state.restore(payload["inside"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: the state does not fit this stage ({error}); delete it to start anew"
            ) from error
        return True

    def keep(self, state: StageState) -> None:
        """Write ``state`` if it is time to."""
        if self.clock.due():
            with self.clock.writing():
                save_checkpoint(self.path(state.stage), {"inside": state.payload()})

    # ---- finished stages --------------------------------------------------------------------------------------

    def finished(self, stage) -> dict | None:
        """Restore a stage that an earlier process finished; its report, or None."""
        path = self.path(stage)
        if not self.resume or not path.exists():
            return None
        payload = load_checkpoint(path)
        if "product" not in payload:
            return None
        stage.restore(payload["product"])
        return payload["report"]

    def finish(self, stage, report: dict) -> None:
        """The stage is done: keep its product where the stage cache does not, and drop the state inside it."""
        if self.cache.folder is None and self.every is not None:
            save_checkpoint(self.path(stage), finished_entry(stage, report))
        elif self.every is not None:
            self.path(stage).unlink(missing_ok=True)

    # ---- the whole training -----------------------------------------------------------------------------------

    def end(self) -> dict | None:
        """What :meth:`finish_all` kept, if the checkpoint it speaks of is still the same file."""
        if not self.resume or not self._end.exists():
            return None
        end = load_checkpoint(self._end)
        return end if seal_of(end["checkpoint"]) == end["seal"] else None

    def finish_all(self, checkpoint, stages) -> None:
        """All is trained and in ``checkpoint``: a killed evaluation need not train again."""
        if self.every is None:
            return
        path = str(Path(checkpoint).absolute())
        save_checkpoint(self._end, {"checkpoint": path, "seal": seal_of(path)})
        for stage in stages:
            self.path(stage).unlink(missing_ok=True)


def not_finite(part: torch.nn.Module) -> str | None:
    """Name of the first weight or buffer of ``part`` that holds NaN or infinity, or None."""
    for name, value in part.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None
