"""The stages of Section 2.5.1, one class each: what is trained, on which batches, how it is judged, what it leaves.

    collaborative  -> model.user_vectors, model.item_vectors
    user tokenizer -> model.user_codes
    item tokenizer -> model.item_codes
    LLM4Rec        -> model.llm

A stage never touches the parts of another. ``TokenRecTrainer`` runs the loop; a stage only answers its questions.
``determinants`` lists every option that its result depends on: the name of its cache entry is made of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from recbole.data.dataloader import TrainDataLoader

from recbole_tokenrec.llm.prompts import NUM_SEEN
from recbole_tokenrec.models.tokenrec import COLLABORATIVE, ITEM_TOKENIZER, LLM, USER_TOKENIZER
from recbole_tokenrec.tokenizers import code_statistics
from recbole_tokenrec.training.loaders import Entities, PairsByUser, PromptsByUser, derived_seed, generator_for


class Stage:
    """What the trainer asks of a stage.

    Attributes:
        name: value of ``model.stage`` while it runs.
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
    def part(self) -> torch.nn.Module:
        """The module that is trained; its state is what the best epoch keeps."""
        raise NotImplementedError

    def steps_per_epoch(self) -> int:
        raise NotImplementedError

    def batches(self, epoch: int) -> Iterable:
        raise NotImplementedError

    def before_epoch(self, epoch: int) -> None:
        """Called with the model in training mode."""

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """Scalars for TensorBoard."""
        return {}

    def before_validation(self) -> None:
        """Called before the model's scores are read."""

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


class CollaborativeStage(Stage):
    """Train ``cf_model``; users and items end as its representations."""

    name, title, prefix, validates = COLLABORATIVE, "collaborative", "cf", True

    def __init__(self, model, train_data):
        super().__init__(model, train_data)
        if self.settings.cf_loss == "softmax_cosine":
            self.loader = PairsByUser(
                model.histories, self.settings.cf_train_batch_size, model.USER_ID, model.ITEM_ID
            )
        else:  # RecBole's own loader and negative sampler, with this stage's batch size
            self.loader = TrainDataLoader(
                model.collaborative.sub_config, train_data._dataset, train_data._sampler, shuffle=True
            )

    @property
    def part(self):
        return self.model.collaborative

    def steps_per_epoch(self):
        return len(self.loader)

    def batches(self, epoch):
        generator = generator_for(self.seed, self.name, epoch)
        if self.settings.cf_loss == "softmax_cosine":
            return self.loader.epoch(generator)
        self.loader.generator.manual_seed(generator.initial_seed())
        return iter(self.loader)

    def before_epoch(self, epoch):
        if self.settings.cf_edge_dropout:
            generator = generator_for(self.seed, self.name, "edges", epoch)
            self.part.drop_edges(self.settings.cf_edge_dropout, generator)

    def before_validation(self):
        if self.settings.cf_edge_dropout:
            self.part.drop_edges(0, None)
        self.model.refresh_representations()

    def finish(self):
        self.before_validation()
        return {}

    def determinants(self):
        return {key: value for key, value in vars(self.settings).items() if key.startswith("cf_")}


class TokenizerStage(Stage):
    """Train the MQ-Tokenizer of users or of items, Eq. 13 or 14; entities end as codes."""

    prefix = "mq"

    def __init__(self, model, train_data, name: str):
        super().__init__(model, train_data)
        self.name = name
        self.title = name.replace("_", " ")
        self.tokenizer, self.vectors = model.tokenizer_parts(name)
        self.lr_decay = "cosine"
        self.loader = Entities(torch.arange(1, len(self.vectors)), self.settings.mq_train_batch_size)
        self.use = None

    @property
    def part(self):
        return self.tokenizer

    @property
    def codes(self) -> torch.Tensor:
        return self.model.user_codes if self.name == USER_TOKENIZER else self.model.item_codes

    def steps_per_epoch(self):
        return len(self.loader)

    def batches(self, epoch):
        return self.loader.epoch(generator_for(self.seed, self.name, epoch))

    def before_epoch(self, epoch):
        settings = self.settings
        if epoch == 0:
            self.tokenizer.fit_scale(self.vectors[1:])
        if settings.mq_kmeans_init:
            self.tokenizer.quantizing = epoch >= settings.mq_warmup_epochs
            if epoch == settings.mq_warmup_epochs:
                self.tokenizer.start_codebooks(self.vectors[1:], derived_seed(self.seed, self.name) % 2**31)

    def after_epoch(self, epoch):
        if not self.settings.mq_revive_dead or not self.tokenizer.quantizing:
            return {}
        # Nothing moves in the last tenth: the codewords settle where they will stay.
        if epoch >= 0.9 * self.settings.mq_epochs:
            return {}
        codes = self.tokenizer.encode_all(self.vectors[1:])  # (n, K)
        use = torch.stack([column.bincount(minlength=self.tokenizer.codebook_size) for column in codes.T])
        return {"revived": self.tokenizer.revive_dead_codewords(self.vectors[1:], use)}

    def finish(self):
        self.tokenizer.quantizing = True
        codes = self.tokenizer.encode_all(self.vectors)
        codes[0] = 0  # the padding entity has no tokens of its own
        self.codes.copy_(codes)
        return {
            "explained_variance": self.tokenizer.explained_variance(self.vectors[1:], codes[1:]),
            **code_statistics(codes, self.tokenizer.codebook_size),
        }

    def determinants(self):
        return {
            key: value for key, value in vars(self.settings).items() if key.startswith(("cf_", "mq_", "id_tokenizer"))
        }


class LLMStage(Stage):
    """Tune backbone, token embeddings and projection for retrieval (Eq. 20 or the softmax over all items)."""

    name, title, prefix, validates = LLM, "LLM4Rec", "llm", True

    def __init__(self, model, train_data):
        super().__init__(model, train_data)
        settings = self.settings
        self.clip_grad_norm = settings.llm_clip_grad_norm
        self.warmup_ratio = settings.llm_warmup_ratio
        self.lr_decay = settings.llm_lr_decay
        if settings.llm_batching == "users":
            self.loader = PromptsByUser(
                model.histories,
                settings.llm_train_batch_size,
                model.USER_ID,
                settings.llm_target_ratio,
                settings.llm_max_targets,
                model.history_limit(),
                min(NUM_SEEN, model.prompts.num_templates),
                settings.prompt_order == "sequential",
                settings.prompt_history,
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

    def start(self) -> None:
        """Give the OOV tokens their first embeddings; the codes are final now."""
        if self.settings.llm_token_init == "codebook":
            model = self.model
            for names, tokenizer in (
                (model.user_token_ids, model.user_tokenizer),
                (model.item_token_ids, model.item_tokenizer),
            ):
                seed = derived_seed(self.seed, self.name, "tokens")
                model.llm.start_token_embeddings(names, tokenizer.codeword_table(), seed)

    def steps_per_epoch(self):
        return len(self.loader)

    def batches(self, epoch):
        generator = generator_for(self.seed, self.name, epoch)
        if self.settings.llm_batching == "users":
            return self.loader.epoch(generator)
        self.loader.generator.manual_seed(generator.initial_seed())
        return iter(self.loader)

    def determinants(self):
        return dict(vars(self.settings))


def stages_of(model, train_data) -> list[Stage]:
    """In the order of Section 2.5.1. Each is built when its turn comes, so that it sees what came before."""
    return [
        lambda: CollaborativeStage(model, train_data),
        lambda: TokenizerStage(model, train_data, USER_TOKENIZER),
        lambda: TokenizerStage(model, train_data, ITEM_TOKENIZER),
        lambda: LLMStage(model, train_data),
    ]
