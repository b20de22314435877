"""TokenRecTrainer: walks the stages of Section 2.5.1 inside RecBole's ``fit`` and ``evaluate``.

Each stage has its own loader, AdamW, learning-rate schedule, epochs, early stopping on the validation metric and best
state. Random numbers: torch is seeded anew at the start of each epoch from (seed, stage, epoch), so that a cached or
resumed stage leaves the later ones unchanged.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, dict2str, early_stopping, set_color
from tqdm import tqdm

import recbole_tokenrec
from recbole_tokenrec.checkpoints import load_checkpoint, plain_config, save_checkpoint
from recbole_tokenrec.errors import ConfigError, TrainingError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.measure import Cost
from recbole_tokenrec.models.tokenrec import COLLABORATIVE, ITEM_TOKENIZER, LLM, USER_TOKENIZER
from recbole_tokenrec.snapshot import DataSnapshot
from recbole_tokenrec.training.cache import StageCache, data_fingerprint
from recbole_tokenrec.training.loaders import derived_seed
from recbole_tokenrec.training.stages import Stage, stages_of


class TokenRecTrainer(Trainer):
    """Attributes beside RecBole's: ``reports``, per stage its seconds, epochs, best validation and own figures."""

    walks_stages = True

    def __init__(self, config, model):
        super().__init__(config, model)
        self.reports: dict[str, dict] = {}
        self.valid_data = self.snapshot = None

    def fit(
        self, train_data, valid_data=None, verbose=True, saved=True, show_progress=False, callback_fn=None
    ):
        """Train all stages; returns RecBole's (best validation score, its metrics), those of the LLM4Rec stage."""
        self.valid_data = valid_data
        self.verbose, self.show_progress = verbose, show_progress
        self.eval_collector.data_collect(train_data)
        self.snapshot = DataSnapshot.from_dataset(train_data._dataset, self.model.histories).payload()
        cache = self._stage_cache(valid_data)
        for build in stages_of(self.model, train_data):
            stage = build()
            self.model.stage = stage.name
            report = None if stage.name == LLM else cache.load(stage)
            if report is not None:
                report = {**report, "cached": True, **stage.finish()}
                self._log(f"{stage.title} stage: taken from {cache.path(stage)}")
            else:
                with Cost() as cost:
                    report = self._run_stage(stage, callback_fn)
                report.update(stage.finish(), cached=False, seconds=cost.seconds, peak_rss_mb=cost.peak_rss_mb)
                if stage.name != LLM:
                    cache.save(stage, report)
            self.reports[stage.name] = report
        self.best_valid_score = self.reports[LLM]["valid_score"]
        self.best_valid_result = self.reports[LLM]["valid"]
        if saved:
            self._save_checkpoint(self.reports[LLM]["best_epoch"], verbose=verbose)
        return self.best_valid_score, self.best_valid_result

    # ---- one stage --------------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage, callback_fn=None) -> dict:
        self._seed(stage, "start")
        stage.start()
        epochs, steps = stage.epochs(), stage.steps_per_epoch()
        self.optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=stage.option("learning_rate"))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_at(step, epochs * steps, stage.warmup_ratio, stage.lr_decay)
        )
        best = {"score": -math.inf if self.valid_metric_bigger else math.inf, "epoch": -1, "state": None, "valid": None}
        waited, shown = 0, {}
        bar = tqdm(
            total=epochs * steps,
            ncols=110,
            desc=set_color(f"{stage.title:>14}", "pink"),
            disable=not self.show_progress,
            mininterval=0.5,
        )
        for epoch in range(epochs):
            self._seed(stage, epoch)
            self.model.train()
            stage.before_epoch(epoch)
            loss = self._train_stage_epoch(stage, epoch, schedule, bar)
            shown["loss"] = f"{loss:.4f}"
            scalars = {"loss": loss, **stage.after_epoch(epoch)}
            last = epoch == epochs - 1
            if stage.validates and self.valid_data and ((epoch + 1) % stage.option("eval_step") == 0 or last):
                stage.before_validation()
                score, result = self._valid_epoch(self.valid_data)
                best["score"], waited, stop, improved = early_stopping(
                    score,
                    best["score"],
                    waited,
                    max_step=stage.option("stopping_step"),
                    bigger=self.valid_metric_bigger,
                )
                if improved:
                    best.update(epoch=epoch, state=copy.deepcopy(stage.part.state_dict()), valid=dict(result))
                stage.after_validation()
                scalars[self.valid_metric] = score
                shown["valid"] = f"{score:.4f}"
                if callback_fn and stage.name == LLM:
                    callback_fn(epoch, score)
                last = last or stop
            bar.set_postfix(shown, refresh=False)
            for name, value in scalars.items():
                self.tensorboard.add_scalar(f"{stage.name}/{name}", value, epoch)
            if last:
                break
        bar.close()
        if best["state"] is not None:
            stage.part.load_state_dict(best["state"])
        report = {"epochs": epoch + 1, "loss": loss}
        report.update(best_epoch=best["epoch"] if best["state"] is not None else epoch)
        if stage.validates:
            report.update(valid_score=best["score"], valid=best["valid"])
        self._log(
            f"{stage.title} stage: {report['epochs']} epochs"
            + (f", best epoch {best['epoch']}: {dict2str(best['valid'])}" if best["valid"] else "")
        )
        return report

    def _train_stage_epoch(self, stage: Stage, epoch: int, schedule, bar) -> float:
        """One pass over the stage's batches; returns the mean loss of a step."""
        total, steps = 0.0, 0
        for interaction in stage.batches(epoch):
            loss = self.model.calculate_loss(interaction.to(self.device))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"{stage.title} stage: the loss is {value} in epoch {epoch}, step {steps}; "
                    f"lower {stage.prefix}_learning_rate ({stage.option('learning_rate')})"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if stage.clip_grad_norm:
                torch.nn.utils.clip_grad_norm_(stage.part.parameters(), stage.clip_grad_norm)
            self.optimizer.step()
            schedule.step()
            stage.after_step()
            total, steps = total + value, steps + 1
            bar.update()
        return total / max(steps, 1)

    # ---- evaluation -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's evaluation; in the LLM4Rec stage all users are encoded once beforehand."""
        if not eval_data:
            return None
        model = self.model
        if load_best_model:
            payload = load_checkpoint(model_file or self.saved_model_file, map_location=self.device)
            model.load_state_dict(payload["state_dict"])
            model.load_other_parameter(payload["other_parameter"])
        model.eval()
        model.evaluation_histories = self._histories_for(eval_data)
        try:
            if model.stage != COLLABORATIVE:
                model.remember_users()
            return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
        finally:
            model.forget_users()
            model.evaluation_histories = model.histories

    @torch.no_grad()
    def evaluate_collaborative(self, eval_data, score: str) -> dict:
        """Metrics of the collaborative stage alone, by ``cosine`` or by ``dot`` product."""
        model = self.model
        stage, before = model.stage, model.collaborative_score
        model.stage, model.collaborative_score = COLLABORATIVE, score
        try:
            return self.evaluate(eval_data, load_best_model=False)
        finally:
            model.stage, model.collaborative_score = stage, before

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
                "cf": reports[COLLABORATIVE]["seconds"],
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

    def _valid_epoch(self, valid_data, show_progress=False):
        self.model.collaborative_score = "cosine" if self.model.settings.cf_loss == "softmax_cosine" else "dot"
        result = self.evaluate(valid_data, load_best_model=False)
        return calculate_valid_score(result, self.valid_metric), result

    def _histories_for(self, eval_data) -> Histories:
        """The training histories; with ``history_at_test: train_valid``, whatever else RecBole masks as history too.

        That is the validation item for the test set, and nothing more for the validation set.
        """
        model = self.model
        if model.settings.history_at_test == "train":
            return model.histories
        if not isinstance(eval_data, FullSortEvalDataLoader):
            raise ConfigError("history_at_test: 'train_valid' needs full-sort evaluation, eval_args: {mode: full}")
        users, items = [], []
        for user in eval_data.uid_list.tolist():
            known = set(model.histories.of_user(user).tolist())
            later = [item for item in eval_data.uid2history_item[user].tolist() if item not in known]
            users += [user] * len(later)
            items += later
        return model.histories.extended(np.array(users, dtype=np.int64), np.array(items, dtype=np.int64))

    # ---- house-keeping ----------------------------------------------------------------------------------------

    def _save_checkpoint(self, epoch, verbose=True, **kwargs):
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        model = self.model
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
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {path}")

    def _stage_cache(self, valid_data) -> StageCache:
        config, settings = self.config, self.model.settings
        context = {
            "data": data_fingerprint(self.model, valid_data),
            "seed": self.model.seed,
            "evaluation": [config[key] for key in ("eval_args", "valid_metric", "train_neg_sample_args")],
            "versions": [torch.__version__, recbole_tokenrec.__version__],
        }
        return StageCache(f"{self.checkpoint_dir}/stage_cache" if settings.stage_cache else None, context)

    def _seed(self, stage: Stage, moment) -> None:
        torch.manual_seed(derived_seed(self.model.seed, stage.name, moment))

    def _log(self, text: str) -> None:
        if self.verbose:
            self.logger.info(text)


def learning_rate_at(step: int, total: int, warmup_ratio: float, decay: str) -> float:
    """Learning rate as a share of its peak: linear warm-up, then constant, linear or cosine decay to 1 %."""
    warmup = warmup_ratio * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if decay == "linear":
        return 1 - 0.99 * done
    if decay == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
