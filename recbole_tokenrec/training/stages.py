"""The stages of Section 2.5.1, one class each: what is trained, on which batches, how it is judged, what it leaves.

    collaborative  -> model.user_vectors, model.item_vectors (a stage for each of several models, then their weights)
    user tokenizer -> model.user_codes
    item tokenizer -> model.item_codes
    LLM4Rec        -> model.llm

A stage never touches the parts of another. ``TokenRecTrainer`` runs the loop; a stage only answers its questions
(``stage.py``).
``determinants`` lists every option that its result depends on: the name of its cache entry is made of them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from recbole.data.dataloader import TrainDataLoader
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recbole_tokenrec.collaborative.ensemble import CollaborativeEnsemble, members_of, weightings
from recbole_tokenrec.llm.llm4rec import token_directions
from recbole_tokenrec.llm.prompts import NUM_SEEN
from recbole_tokenrec.models.tokenrec import COLLABORATIVE, ITEM_TOKENIZER, LLM, USER_TOKENIZER
from recbole_tokenrec.tokenizers import code_statistics
from recbole_tokenrec.training.loaders import PromptsByUser, Rows, derived_seed, generator_for
from recbole_tokenrec.training.muon import Muon, with_matrices_apart
from recbole_tokenrec.training.parts import next_part, random_part, window_part, without_some
from recbole_tokenrec.training.stage import Stage
from recbole_tokenrec.training.steps import CF_EPOCHS, CF_STEPS, CF_VALIDATIONS, LLM_EPOCHS, LLM_STEPS, epochs_of


class CollaborativeStage(Stage):
    """Train ``cf_model``, or one of several; users and items end as its representations.

    Args:
        number: which of the models. The first is trained as it would be alone.
    """

    prefix, validates, phase = "cf", True, COLLABORATIVE

    def __init__(self, model, train_data, number: int = 0):
        super().__init__(model, train_data)
        self.number, members = number, members_of(model.collaborative)
        self.member = members[number]
        self.name = f"{COLLABORATIVE}_{number + 1}" if number else COLLABORATIVE
        self.title = "collaborative" + (f" {number + 1}/{len(members)}" if len(members) > 1 else "")
        if self.settings.cf_loss == "softmax_cosine":
            self.lr_decay, self.warmup_ratio = "cosine", 0.05
            self.loader = self.member.training_batches(self.settings.cf_train_batch_size)
        else:  # RecBole's own loader and negative sampler, with this stage's batch size
            sub_config = self.member.sub_config
            self.loader = TrainDataLoader(sub_config, train_data._dataset, train_data._sampler, shuffle=True)

    def option(self, name):
        value = super().option(name)
        return max(1, self.epochs() // CF_VALIDATIONS) if name == "eval_step" and value is None else value

    def epochs(self):
        return self.option("epochs") or epochs_of(CF_STEPS, CF_EPOCHS, self.steps_per_epoch())

    def parameter_groups(self):
        decay = self.option("weight_decay")
        return [{"params": list(self.part.parameters()), "weight_decay": decay}]

    @property
    def part(self):
        return self.member

    def start(self):
        self.model.collaborative.in_training = self.number

    def steps_per_epoch(self):
        return len(self.loader)

    def batches(self, epoch):
        generator = generator_for(self.seed, self.name, epoch)
        if self.settings.cf_loss == "softmax_cosine":
            return self.loader.epoch(generator)
        self.loader.generator.manual_seed(generator.initial_seed())
        return iter(self.loader)

    def before_validation(self):
        if isinstance(self.model.collaborative, CollaborativeEnsemble):
            self.model.collaborative.mix.only(self.number)
        self.model.refresh_representations()

    def finish(self):
        self.before_validation()
        return {}

    def determinants(self):
        options = {key: value for key, value in vars(self.settings).items() if key.startswith("cf_")}
        return {**options, "cf_targets": self.settings.cf_targets[self.number]}


class WeightsStage(Stage):
    """Choose the weights of several collaborative models: each epoch is one choice, and validation keeps the best."""

    name, title, prefix, validates, phase = f"{COLLABORATIVE}_weights", "weights", "cf", True, COLLABORATIVE

    def __init__(self, model, train_data):
        super().__init__(model, train_data)
        self.choices = weightings(len(members_of(model.collaborative)))

    @property
    def part(self):
        return self.model.collaborative.mix

    def option(self, name):
        return {"eval_step": 1, "stopping_step": len(self.choices)}.get(name) or super().option(name)

    def epochs(self):
        return len(self.choices)

    def steps_per_epoch(self):
        return 0

    def batches(self, epoch):
        return []

    def before_epoch(self, epoch):
        self.part.set(self.choices[epoch])

    def unjudged(self):
        number = len(members_of(self.model.collaborative))
        self.part.set([1 / number] * number)
        return super().unjudged()

    def before_validation(self):
        self.model.refresh_representations()

    def finish(self):
        self.before_validation()
        return {"weights": self.part.weights.tolist()}

    def determinants(self):
        return {key: value for key, value in vars(self.settings).items() if key.startswith("cf_")}


class TokenizerStage(Stage):
    """Train the MQ-Tokenizer of users or of items, Eq. 13 or 14; entities end as codes.

    With ``llm_user_tokens: visible`` the user tokenizer also sees users as their random sub-histories make them, in
    every second epoch: those are the vectors it will tokenize in the LLM4Rec stage, and new users'.
    """

    prefix, lr_decay, warmup_ratio = "mq", "cosine", 0.05

    def __init__(self, model, train_data, name: str):
        super().__init__(model, train_data)
        self.name = name
        self.title = name.replace("_", " ")
        users = name == USER_TOKENIZER
        self.tokenizer = model.user_tokenizer if users else model.item_tokenizer
        self.codes = model.user_codes if users else model.item_codes
        self.vectors = model.tokenizer_inputs(model.user_vectors if users else model.item_vectors)[1:]
        self.varies = users and self.settings.llm_user_tokens == "visible"
        self.loader = Rows(self.vectors, self.settings.mq_train_batch_size)

    @property
    def part(self):
        return self.tokenizer

    def parameter_groups(self):
        """Codebooks apart: they follow the encoders, and encoders that move faster than they can drift for ever."""
        books = [p for name, p in self.part.named_parameters() if name.startswith("codebook")]
        rest = [p for name, p in self.part.named_parameters() if not name.startswith("codebook")]
        rate = self.option("learning_rate")
        groups = [{"params": rest, "weight_decay": self.option("weight_decay")}]
        if books:
            groups.append({"params": books, "weight_decay": 0.0, "lr": rate * self.settings.mq_codebook_lr_ratio})
        return groups

    def epochs(self):
        return max(self.option("epochs"), -(-self.settings.mq_min_steps // self.steps_per_epoch()))

    def steps_per_epoch(self):
        return len(self.loader)

    def batches(self, epoch):
        return self.loader.epoch(generator_for(self.seed, self.name, epoch))

    def before_epoch(self, epoch):
        if self.varies:
            self.loader.vectors = self.vectors if epoch % 2 == 0 else self._sub_histories(epoch)
        if epoch == 0:
            self.tokenizer.fit_scale(self.loader.vectors)
            if self.settings.mq_kmeans_init:
                self.tokenizer.start_from(self.loader.vectors, derived_seed(self.seed, self.name) % 2**31)

    def _sub_histories(self, epoch: int) -> torch.Tensor:
        """Users by parts of their histories, such as the LLM4Rec stage shows; the shortest histories stay whole."""
        model, settings = self.model, self.settings
        generator = generator_for(self.seed, self.name, "visible", epoch)
        draw = next_part if settings.prompt_order == "sequential" else random_part
        _, visible = draw(model.histories, tuple(settings.llm_target_ratio), generator)
        alone = (model.histories.counts() < 2)[model.histories.rows()]
        return model.folded_in(visible | alone)[1:]

    def after_epoch(self, epoch):
        # Nothing moves in the last fifth: the codewords settle where they will stay.
        settled = epoch >= 0.8 * self.epochs()
        if not self.settings.mq_revive_dead or settled:
            return {}
        codes = self.tokenizer.encode_all(self.vectors)  # (n, K)
        use = torch.stack([column.bincount(minlength=self.tokenizer.codebook_size) for column in codes.T])
        return {"revived": self.tokenizer.revive_dead_codewords(self.vectors, use)}

    def finish(self):
        self.codes[1:] = self.tokenizer.encode_all(self.vectors)  # the padding entity keeps code 0
        return {
            "explained_variance": self.tokenizer.explained_variance(self.vectors, self.codes[1:]),
            **code_statistics(self.codes, self.tokenizer.codebook_size),
        }

    def determinants(self):
        own = ("cf_", "mq_", "id_tokenizer", "llm_user_tokens", "llm_target_ratio", "prompt_order")
        return {key: value for key, value in vars(self.settings).items() if key.startswith(own)}


class LLMStage(Stage):
    """Tune backbone, token embeddings and projection for retrieval (Eq. 20 or the softmax over all items)."""

    name, title, prefix, validates = LLM, "LLM4Rec", "llm", True

    def __init__(self, model, train_data):
        super().__init__(model, train_data)
        settings = self.settings
        self.clip_grad_norm = settings.llm_clip_grad_norm
        self.warmup_ratio = settings.llm_warmup_ratio
        self.lr_decay = settings.llm_lr_decay
        self.average = None
        if settings.llm_batching == "users":
            self.loader = PromptsByUser(
                model.histories,
                settings.llm_train_batch_size,
                model.USER_ID,
                self._parts,
                model.history_limit(),
                NUM_SEEN,
                sequential=settings.prompt_order == "sequential",
                targets_read=settings.prompt_decoder_items > 0,
                users_of=self._users_of if settings.llm_user_tokens == "visible" else None,
            )
        else:
            config = copy.copy(train_data.config)
            config.final_config_dict = {
                **config.final_config_dict,
                "train_batch_size": settings.llm_train_batch_size,
            }
            self.loader = TrainDataLoader(config, train_data._dataset, train_data._sampler, shuffle=True)

    @property
    def part(self):
        return self.model.llm

    def _parts(self, generator: torch.Generator):
        histories, settings = self.model.histories, self.settings
        if settings.prompt_decoder_items:  # what the decoder reads, and one item more
            parts = window_part(histories, settings.prompt_decoder_items + 1, generator)
        else:
            draw = next_part if settings.prompt_order == "sequential" else random_part
            parts = draw(histories, tuple(settings.llm_target_ratio), generator)
        share = settings.llm_item_dropout
        return without_some(histories, parts, share, generator) if share else parts

    def _users_of(self, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.model.folded_in(visible)
        return self.model.user_tokenizer.encode_all(vectors), vectors

    def epochs(self):
        return self.option("epochs") or epochs_of(LLM_STEPS, LLM_EPOCHS, self.steps_per_epoch())

    def start(self) -> None:
        """Give the OOV tokens their first embeddings; the codes are final now."""
        model = self.model
        if self.settings.llm_token_init == "codebook":
            for ids, codes, vectors in (
                (model.user_token_ids, model.user_codes, model.user_vectors),
                (model.item_token_ids, model.item_codes, model.item_vectors),
            ):
                directions = token_directions(
                    codes[1:], model.tokenizer_inputs(vectors)[1:], self.settings.mq_codebook_size
                )
                seed = derived_seed(self.seed, self.name, "tokens")
                model.llm.start_token_embeddings(ids, directions, self.settings.llm_token_scale, seed)
        if self.settings.llm_ema:
            self.average = AveragedModel(model.llm, multi_avg_fn=get_ema_multi_avg_fn(self.settings.llm_ema))

    def optimizer(self):
        if self.option("optimizer") == "adamw":
            return super().optimizer()
        groups = with_matrices_apart(self.parameter_groups(), self.part)
        return Muon(groups, self.option("learning_rate"), self.model.low_precision)

    def steps_per_epoch(self):
        return len(self.loader)

    def batches(self, epoch):
        generator = generator_for(self.seed, self.name, epoch)
        if self.settings.llm_batching == "users":
            return self.loader.epoch(generator)
        self.loader.generator.manual_seed(generator.initial_seed())
        return iter(self.loader)

    def before_epoch(self, epoch):
        settings = self.settings
        left = 1.0 if settings.llm_distill_decay == "constant" else 1 - 2 * epoch / self.epochs()
        self.model.distill = settings.llm_distill * max(left, 0.0)

    def after_step(self):
        if self.average is not None:
            self.average.update_parameters(self.model.llm)

    def state_beside_part(self):
        return {} if self.average is None else self.average.state_dict()

    def restore_beside_part(self, state):
        if self.average is not None:
            self.average.load_state_dict(state)

    def before_validation(self):
        """The averaged weights are what is evaluated and kept; those in training wait."""
        if self.average is not None:
            self.in_training, self.model.llm = self.model.llm, self.average.module

    def after_validation(self):
        if self.average is not None:
            self.model.llm = self.in_training

    def unjudged(self):
        return super().unjudged() if self.average is None else copy.deepcopy(self.average.module.state_dict())

    def determinants(self):
        return everything(self.model)


def everything(model) -> dict:
    """All that the last stage, and so the training, depends on."""
    weights = {"llm_weights": model.backbone_digest} if model.backbone_digest else {}
    return {**vars(model.settings), **weights}


def stages_of(model, train_data) -> list[Callable[[], Stage]]:
    """Builders in the order of Section 2.5.1. A stage is built when its turn comes, and sees what came before."""
    number = len(members_of(model.collaborative))
    return [
        *(functools.partial(CollaborativeStage, model, train_data, member) for member in range(number)),
        *([lambda: WeightsStage(model, train_data)] if number > 1 else []),
        lambda: TokenizerStage(model, train_data, USER_TOKENIZER),
        lambda: TokenizerStage(model, train_data, ITEM_TOKENIZER),
        lambda: LLMStage(model, train_data),
    ]
