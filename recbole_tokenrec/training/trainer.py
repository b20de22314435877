"""TokenRecTrainer: walks the stages of Section 2.5.1 inside RecBole's ``fit`` and ``evaluate``.

Each stage has its own loader, optimizer, learning-rate schedule, epochs, early stopping on the validation metric and
best state. Random numbers: torch, numpy and Python are seeded anew at the start of each epoch from (seed, stage,
epoch), so that a cached or resumed stage leaves the later ones unchanged. What a killed run needs to go on is in
``progress.py``.
"""

from __future__ import annotations

import copy
import math
import os
import random
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import dict2str, early_stopping, set_color
from tqdm import tqdm

import recbole_tokenrec
from recbole_tokenrec.checkpoints import load_checkpoint, plain_config, save_checkpoint
from recbole_tokenrec.errors import TrainingError
from recbole_tokenrec.measure import Cost
from recbole_tokenrec.models.tokenrec import COLLABORATIVE, ITEM_TOKENIZER, LLM, USER_TOKENIZER
from recbole_tokenrec.snapshot import DataSnapshot
from recbole_tokenrec.sources import code_digest
from recbole_tokenrec.training import distributed
from recbole_tokenrec.training.cache import StageCache, data_fingerprint
from recbole_tokenrec.training.evaluation import StagedEvaluation
from recbole_tokenrec.training.loaders import derived_seed
from recbole_tokenrec.training.progress import Progress, StageState, not_finite, resume_options
from recbole_tokenrec.training.stage import Stage
from recbole_tokenrec.training.stages import everything, stages_of
from recbole_tokenrec.training.steps import learning_rate_at


class TokenRecTrainer(StagedEvaluation, Trainer):
    """Attributes beside RecBole's: ``reports``, per stage its seconds, epochs, best validation and own figures."""

    walks_stages = True

    def __init__(self, config, model):
        super().__init__(config, model)
        self._resume_options = resume_options(config)
        # RecBole names the file by the second; trainings side by side would overwrite each other's.
        file = Path(self.saved_model_file)
        self.saved_model_file = str(file.with_name(f"{file.stem}-{os.getpid()}{file.suffix}"))
        self.reports: dict[str, dict] = {}
        self.valid_data = self.snapshot = None

    def fit(
        self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None
    ):
        """Train all stages; returns RecBole's (best validation score, its metrics), those of the LLM4Rec stage.

        Raises:
            TrainingError: a loss or weight is not finite; the text says where, and which file holds the last good
                state.
            CheckpointError: a state cannot be written (the one before is still there) or, with ``resume``, read.
        """
        self.valid_data = valid_data
        self.verbose, self.show_progress, self.saved = verbose, show_progress, saved
        self.eval_collector.data_collect(train_data)
        self.snapshot = DataSnapshot.from_dataset(train_data._dataset, self.model.histories).payload()
        cache = self._stage_cache(valid_data)
        resume, every = self._resume_options
        self.progress = Progress(
            Path(self.checkpoint_dir) / "resume",
            cache,
            resume and distributed.is_first(),
            every if distributed.is_first() else None,
            everything(self.model),
        )
        self.saved_model_file = distributed.shared(self.saved_model_file)
        if not (saved and self._ended_before()):
            stages = []
            for build in stages_of(self.model, train_data):
                stages.append(stage := build())
                alone = cache.exclusive(stage) if stage.name != LLM and distributed.is_first() else nullcontext()
                with alone:
                    self.reports[stage.name] = self._trained_or_restored(stage, cache, callback_fn)
            if saved:
                self._save_checkpoint(self.reports[LLM]["best_epoch"], verbose=verbose)
                self.progress.finish_all(self.saved_model_file, stages)
        self.best_valid_score = self.reports[LLM]["valid_score"]
        self.best_valid_result = self.reports[LLM]["valid"]
        self._seed("after", "training")  # a sampled evaluation draws numbers: the same ones after a resumed training
        return self.best_valid_score, self.best_valid_result

    def _ended_before(self) -> bool:
        """Take a finished training from its checkpoint, if an earlier process got that far."""
        if (end := distributed.shared(self.progress.end())) is None:
            return False
        self.saved_model_file = end["checkpoint"]
        payload = load_checkpoint(self.saved_model_file, map_location=self.device)
        self.model.load_state_dict(payload["state_dict"])
        self.model.load_other_parameter(payload["other_parameter"])
        self.reports = payload["reports"]
        self._log(f"training: taken from {self.saved_model_file}")
        return True

    def _trained_or_restored(self, stage: Stage, cache: StageCache, callback_fn) -> dict:
        """The stage's report, once its part holds its final state."""
        self.model.stage = stage.phase
        cached = None
        if stage.name != LLM and distributed.is_first():
            cached = cache.load(stage) or self.progress.finished(stage)
        if (cached := distributed.shared(cached)) is not None:
            distributed.share_state(stage.part)
            self._log(f"{stage.title} stage: taken from an earlier run")
            return {**cached, "cached": True, **stage.finish()}
        with Cost() as cost:
            report = self._run_stage(stage, callback_fn)
        seconds = cost.seconds + report.pop("earlier_seconds")
        report.update(stage.finish(), cached=False, seconds=seconds, peak_rss_mb=cost.peak_rss_mb)
        if stage.name != LLM and distributed.is_first():
            cache.save(stage, report)
            self.progress.finish(stage, report)
        return report

    # ---- one stage --------------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage, callback_fn=None) -> dict:
        self._seed(stage.name, "start")
        stage.start()
        epochs, steps = stage.epochs(), -(-stage.steps_per_epoch() // distributed.world())
        self.optimizer = stage.optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_at(step, epochs * steps, stage.warmup_ratio, stage.lr_decay)
        )
        state = StageState(stage, self.optimizer, schedule, self.valid_metric_bigger)
        taken_up = state.payload() if self.progress.take_up(state) else None
        if (taken_up := distributed.shared(taken_up)) is not None:
            state.restore(taken_up)
            self._log(f"{stage.title} stage: goes on in epoch {state.epoch}")
        earlier, shown = state.seconds, {}
        bar = tqdm(
            total=epochs * steps,
            initial=state.epoch * steps,
            ncols=110,
            desc=set_color(f"{stage.title:>14}", "pink"),
            disable=not (self.show_progress and distributed.is_first()),
            mininterval=0.5,
        )
        for epoch in range(state.epoch, epochs):
            self._seed(stage.name, epoch)
            self.model.train()
            stage.before_epoch(epoch)
            if distributed.active():  # alike at the start of an epoch, and then each with random numbers of its own
                distributed.share_state(stage.part)
                torch.manual_seed(derived_seed(self.model.seed, stage.name, epoch, distributed.rank()))
            state.loss = self._train_stage_epoch(state, epoch, bar)
            shown["loss"] = f"{state.loss:.4f}"
            scalars = {"loss": state.loss, **stage.after_epoch(epoch)}
            distributed.share_state(stage.part)
            if weight := not_finite(stage.part):
                self._stop(state, f"the weight {weight} is not finite after epoch {epoch}")
            last = epoch == epochs - 1
            if stage.validates and self.valid_data and ((epoch + 1) % stage.option("eval_step") == 0 or last):
                score, stop = self._validate(state, epoch)
                scalars[self.valid_metric] = score
                shown["valid"] = f"{score:.4f}"
                if callback_fn and stage.name == LLM:
                    callback_fn(epoch, score)
                last = last or stop
            bar.set_postfix(shown, refresh=False)
            for name, value in scalars.items():
                self.tensorboard.add_scalar(f"{stage.name}/{name}", value, epoch)
            state.epoch = epoch + 1
            if last:
                break
            state.remember_good()
            self.progress.keep(state)
        bar.close()
        return self._stage_report(state, earlier)

    def _validate(self, state: StageState, epoch: int) -> tuple[float, bool]:
        """Validation score, and whether the stage should stop; the best part so far is kept in ``state``."""
        stage = state.stage
        stage.before_validation()
        score, result = self._valid_epoch(self.valid_data)
        state.best_score, state.waited, stop, improved = early_stopping(
            score,
            state.best_score,
            state.waited,
            max_step=stage.option("stopping_step"),
            bigger=self.valid_metric_bigger,
        )
        if improved:
            state.best_epoch, state.best_valid = epoch, dict(result)
            state.best_part = copy.deepcopy(stage.part.state_dict())
        stage.after_validation()
        return score, stop

    def _stage_report(self, state: StageState, earlier: float) -> dict:
        """Load the best state, or the one to keep unseen; what the result file says of the stage."""
        stage = state.stage
        stage.part.load_state_dict(stage.unjudged() if state.best_part is None else state.best_part)
        report = {"epochs": state.epoch, "loss": state.loss, "earlier_seconds": earlier}
        report.update(best_epoch=state.best_epoch if state.best_part is not None else state.epoch - 1)
        if stage.validates:
            report.update(valid_score=state.best_score, valid=state.best_valid)
        self._log(
            f"{stage.title} stage: {report['epochs']} epochs"
            + (f", best epoch {state.best_epoch}: {dict2str(state.best_valid)}" if state.best_valid else "")
        )
        return report

    def _train_stage_epoch(self, state: StageState, epoch: int, bar) -> float:
        """One pass over the stage's batches; returns the mean loss of a step."""
        stage = state.stage
        total, steps = 0.0, 0
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for interaction, sharing in distributed.own_batches(stage.batches(epoch)):
            loss = None if interaction is None else self.model.calculate_loss(interaction.to(self.device))
            value = distributed.mean_loss(loss, sharing)
            if not math.isfinite(value):
                self._stop(state, f"the loss is {value} in epoch {epoch}, step {steps}")
            self.optimizer.zero_grad(set_to_none=True)
            if loss is not None:
                loss.backward()
            distributed.average_gradients(parameters, sharing)
            if stage.clip_grad_norm:
                torch.nn.utils.clip_grad_norm_(stage.part.parameters(), stage.clip_grad_norm)
            self.optimizer.step()
            state.schedule.step()
            stage.after_step()
            total, steps = total + value, steps + 1
            bar.update()
        return total / max(steps, 1)

    def _stop(self, state: StageState, what: str) -> None:
        """Put the stage's last good state back, keep it in a checkpoint where it gives scores, and raise."""
        stage, model = state.stage, self.model
        weight = not_finite(stage.part)
        text = f"{stage.title} stage: {what}" + (f" (first weight that is not finite: {weight})" if weight else "")
        epoch = state.put_good_back()
        if epoch is not None and self.saved:
            if stage.phase == COLLABORATIVE:
                model.refresh_representations()
            if stage.name != LLM or state.best_part is None:  # what can be scored is the stage before
                model.stage = COLLABORATIVE
            self._save_checkpoint(epoch, verbose=False)
            text += f"; the last good state, of epoch {epoch}, is kept in {self.saved_model_file}"
        raise TrainingError(f"{text}; lower {stage.prefix}_learning_rate ({stage.option('learning_rate')})")

    # ---- the result file --------------------------------------------------------------------------------------

    def describe(self, valid_data, test_data) -> dict:
        """What TokenRec adds to its row of the result file."""
        with Cost() as cost:
            collaborative = {
                score: {
                    "valid": self.evaluate_collaborative(valid_data, score),
                    "test": self.evaluate_collaborative(test_data, score),
                }
                for score in ("dot", "cosine")
            }
        reports = self.reports
        codes = {name: reports[name] for name in (USER_TOKENIZER, ITEM_TOKENIZER)}
        return {
            "seconds": {
                "cf": sum(reports[name]["seconds"] for name in reports if name.startswith(COLLABORATIVE)),
                "tokenizer": sum(report["seconds"] for report in codes.values()),
                "llm": reports[LLM]["seconds"],
                "collaborative_evaluation": cost.seconds,
            },
            "collaborative": collaborative,
            "backbone": self.model.backbone_origin,
            "codes": {
                name.split("_")[0]: {
                    key: report[key] for key in ("explained_variance", "unique_share", "codebook_use", "perplexity")
                }
                for name, report in codes.items()
            },
            "stages": reports,
        }

    # ---- house-keeping ----------------------------------------------------------------------------------------

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        model = self.model
        if not distributed.is_first():
            return distributed.barrier()
        config = plain_config(self.config)
        config["config_dict"]["llm_backbone_state"] = model.backbone_state
        save_checkpoint(
            path,
            {
                "config": config,
                "epoch": epoch,
                "cur_step": 0,
                "best_valid_score": self.best_valid_score,
                "state_dict": model.state_dict(),
                "other_parameter": model.other_parameter(),
                "optimizer": {},
                "reports": self.reports,
                "data": self.snapshot,
            },
        )
        distributed.barrier()  # nobody looks for the file before it is there
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def _stage_cache(self, valid_data) -> StageCache:
        config, settings = self.config, self.model.settings
        context = {
            "data": data_fingerprint(self.model, valid_data),
            "seed": self.model.seed,
            "evaluation": [config[key] for key in ("eval_args", "valid_metric", "train_neg_sample_args")],
            "versions": [torch.__version__, recbole_tokenrec.__version__, code_digest()],
            **({"precision": "bf16"} if self.model.low_precision else {}),  # as resolved: auto differs by machine
        }
        return StageCache(f"{self.checkpoint_dir}/stage_cache" if settings.stage_cache else None, context)

    def _seed(self, *moment) -> None:
        seed = derived_seed(self.model.seed, *moment)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # RecBole's samplers
        random.seed(seed)

    def _log(self, text: str) -> None:
        if self.verbose and distributed.is_first():
            self.logger.info(text)
