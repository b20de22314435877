"""How the trainer evaluates: RecBole's full sort over all users, within a memory budget, and across processes.

RecBole's loaders, collector and evaluator do the counting. What is added: users are encoded once for all batches, the
collaborative stage can be scored alone, batches shrink until their scores fit into ``memory_budget_gb``, and several
processes share the batches.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import calculate_valid_score

from recbole_tokenrec.checkpoints import load_checkpoint
from recbole_tokenrec.models.tokenrec import COLLABORATIVE
from recbole_tokenrec.training import distributed

# RecBole's evaluation holds for each score itself (4 bytes), a mask of positives (8) and what top-k needs beside them.
_BYTES_PER_SCORE = 16
# What RecBole's collector holds for each user; the rest is of the data set.
PER_USER = ("rec.items", "rec.topk", "rec.meanrank", "rec.score", "data.label")


class StagedEvaluation:
    """Beside RecBole's ``Trainer``, before it among the bases: ``evaluate`` of a model that is trained in stages."""

    def __init__(self, config, model):
        super().__init__(config, model)
        self._smaller: list[tuple] = []

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """RecBole's evaluation; in the LLM4Rec stage all users are encoded once beforehand.

        With ``history_at_test: train_valid`` the model reads whatever RecBole masks as history: the validation item
        for the test set, and nothing more for the validation set.
        """
        if not eval_data:
            return None
        model = self.model
        if load_best_model:
            payload = load_checkpoint(model_file or self.saved_model_file, map_location=self.device)
            model.load_state_dict(payload["state_dict"])
            model.load_other_parameter(payload["other_parameter"])
        model.eval()
        longer = model.settings.history_at_test == "train_valid"
        eval_data = self._within_budget(eval_data)
        with model.reading(model.histories.known_at(eval_data)) if longer else nullcontext():
            try:
                if distributed.active():
                    return self._evaluate_together(eval_data)
                if model.stage != COLLABORATIVE:
                    model.remember_users()
                return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)
            finally:
                model.forget_users()

    def _evaluate_together(self, eval_data) -> dict:
        """RecBole's evaluation with its batches dealt out to the processes; the same metrics in each of them."""
        model = self.model
        if model.stage != COLLABORATIVE:
            mine = torch.arange(distributed.rank(), model.n_users, distributed.world(), device=self.device)
            parts = distributed.everybodys(model.encode_users(mine).cpu())
            encoded = torch.empty(model.n_users, parts[0].shape[1])
            for rank, part in enumerate(parts):
                encoded[rank :: distributed.world()] = part
            model.use_encoded_users(encoded.to(self.device))
        self.tot_item_num = eval_data._dataset.item_num
        full = isinstance(eval_data, FullSortEvalDataLoader)
        scores_of = self._full_sort_batch_eval if full else self._neg_sample_batch_eval
        mine = {}
        for number, batch in enumerate(eval_data):  # sampled negatives are drawn alike in every process
            if number % distributed.world() == distributed.rank():
                interaction, scores, rows, items = scores_of(batch)
                self.eval_collector.eval_batch_collect(scores, interaction, rows, items)
                struct = self.eval_collector.get_data_struct()
                mine[number] = {key: struct[key] for key in PER_USER if key in struct}
        parts = {number: part for process in distributed.everybodys(mine) for number, part in process.items()}
        struct = self.eval_collector.get_data_struct()  # what concerns the data as a whole
        for key in PER_USER:
            if key in parts[0]:
                struct.set(key, torch.cat([parts[number][key] for number in sorted(parts)]))
        return self.evaluator.evaluate(struct)

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

    def _valid_epoch(self, valid_data, show_progress=False):
        self.model.collaborative_score = "cosine" if self.model.settings.cf_loss == "softmax_cosine" else "dot"
        result = self.evaluate(valid_data, load_best_model=False)
        return calculate_valid_score(result, self.valid_metric), result

    def _within_budget(self, eval_data):
        """``eval_data``, or the same with fewer users a batch, if their scores would exceed ``memory_budget_gb``."""
        if not isinstance(eval_data, FullSortEvalDataLoader):
            return eval_data
        bytes_per_user = _BYTES_PER_SCORE * self.model.n_items
        users = max(1, int(self.model.settings.memory_budget_gb * 2**30 / bytes_per_user))
        if eval_data.step <= users:
            return eval_data
        for original, smaller in self._smaller:
            if original is eval_data:
                return smaller
        config = copy.copy(eval_data.config)
        config.final_config_dict = {**config.final_config_dict, "eval_batch_size": users * self.model.n_items}
        smaller = type(eval_data)(config, eval_data._dataset, eval_data._sampler, shuffle=False)
        self._smaller.append((eval_data, smaller))
        return smaller
