"""CoLLM-gen: CoLLM (Zhang et al., TKDE 2025) with item IDs as its output, as TokenRec's Section 3.1.2 compares it.

CoLLM gives a language model what a collaborative model knows: the vector of a user or an item, from a trained and
then frozen LightGCN, goes through an MLP and becomes one *soft token* that stands beside the entity's text. It is
tuned in two stages, first the language model on text alone, then the projection with the language model frozen.

The original answers "will the user like it?" by yes or no. TokenRec's variant generates item IDs instead and is not
published; ours is: the same prompts, answered by the next item's ID through constrained beam search. The yes/no
question is learnt beside it (``yes_no_weight``), and its logit is ``predict``, the re-ranker's score of a pair.

Differences from the authors' code: our data have no titles, so that an item's text is its ID; T5, whose answer is
the decoder's first token; ``lora_rank: 0`` tunes all weights in the first stage, as a backbone without pretraining
needs; the learning rate falls linearly, not by cosine.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.trainer import Trainer
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.checkpoints import load_for_recbole
from recbole_tokenrec.collaborative.representations import model_config, representations
from recbole_tokenrec.collaborative.sparse_lightgcn import SparseLightGCN
from recbole_tokenrec.errors import BackboneError, TrainingError
from recbole_tokenrec.generative.recommender import GenerativeRecommender
from recbole_tokenrec.generative.templates import ENTITY_WORDS
from recbole_tokenrec.generative.words import Prompt, PromptBatch, fill
from recbole_tokenrec.options import Option

NEXT_ITEM = "{user} has taken {items} . Which item comes next ?"
YES_OR_NO = "{user} has taken {items} . Will {user} like {target} ? yes or no"
TEXT, SOFT = "text", "soft"  # the two stages


class CoLLM(GenerativeRecommender):
    """See the module's docstring.

    Attributes:
        stage: ``text``, prompts without soft tokens, or ``soft``.
        vectors: (n_users + n_items, d), the collaborative vectors, users first; frozen.
        projection: d -> 10 d -> width.

    Raises:
        ConfigError: a key of properties/model/CoLLM.yaml has a wrong value.
    """

    options = {
        **GenerativeRecommender.options,
        "yes_no_weight": Option(float, low=0),
        "yes_no_share": Option(float, low=0, high=1, open_low=True),
        "text_epochs": Option(int, low=0),
        "lora_rank": Option(int, low=0),
        "tune_backbone": Option(bool),
        "cf_embedding_size": Option(int, low=1),
        "cf_n_layers": Option(int, low=1),
        "cf_reg_weight": Option(float, low=0),
        "cf_learning_rate": Option(float, low=0, open_low=True),
        "cf_train_batch_size": Option(int, low=1),
        "cf_epochs": Option(int, low=1),
        "cf_eval_step": Option(int, low=1),
        "cf_stopping_step": Option(int, low=1),
    }

    def __init__(self, config, dataset):
        blank = {"user": "user", "items": "", "target": ""}
        texts = [ENTITY_WORDS, NEXT_ITEM.format(**blank), YES_OR_NO.format(**blank)]
        super().__init__(config, dataset, texts)
        self.config = config
        self.yes_no_weight, self.yes_no_share = config["yes_no_weight"], config["yes_no_share"]
        self.tune_backbone = config["tune_backbone"]
        dim, width = config["cf_embedding_size"], self.backbone.config.d_model
        self.register_buffer("vectors", torch.zeros(self.n_users + self.n_items, dim))
        self.projection = nn.Sequential(nn.Linear(dim, 10 * dim), nn.ReLU(), nn.Linear(10 * dim, width))
        self.yes_id = self.words.tokens("yes")[0]
        self.stage = SOFT
        self.other_parameter_name = ["stage"]
        if config["lora_rank"]:
            _add_lora(self.backbone, config["lora_rank"])
        self.tuned_in_text = [p for p in self.backbone.parameters() if p.requires_grad]

    # ---- stages -----------------------------------------------------------------------------------------------

    def prepare(self, train_data, valid_data) -> list:
        """Trains the collaborative model at once; the text stage is left to the trainer."""
        self._learn_vectors(train_data, valid_data)
        epochs = self.config["text_epochs"]
        return [(self._enter_text_stage, epochs)] if epochs else []

    def _learn_vectors(self, train_data, valid_data) -> None:
        """LightGCN, trained by RecBole's Trainer on the same split, its best epoch by the same metric."""
        ours = self.config
        names = ("embedding_size", "n_layers", "reg_weight", "learning_rate", "train_batch_size")
        names += ("epochs", "eval_step", "stopping_step")
        keys = {name: ours["cf_" + name] for name in names}
        keys.update(learner="adam", weight_decay=0.0, clip_grad_norm=None)
        config = model_config(ours, "LightGCN", SparseLightGCN, keys)
        model = SparseLightGCN(config, train_data._dataset).to(self.device)
        loader = TrainDataLoader(config, train_data._dataset, train_data._sampler, shuffle=True)
        trainer = Trainer(config, model)
        trainer.fit(loader, valid_data, verbose=False, saved=True)
        best = Path(trainer.saved_model_file)
        if best.is_file():  # none if no validation was reached: the last epoch counts
            model.load_state_dict(load_for_recbole(best, self.device)["state_dict"])
            best.unlink()
        model.restore_user_e = model.restore_item_e = None
        table = torch.cat(representations(model))  # (n_users + n_items, d)
        self.vectors.copy_(table / table.std().clamp_min(1e-8))

    def _enter_text_stage(self) -> None:
        self.stage = TEXT
        self.projection.requires_grad_(False)

    def enter_last_stage(self) -> None:
        self.stage = SOFT
        self.projection.requires_grad_(True)
        for parameter in self.tuned_in_text:
            parameter.requires_grad_(self.tune_backbone)

    # ---- prompts ----------------------------------------------------------------------------------------------

    def prompt(self, template: str, user: int, items: list[int], target: int = 0) -> Prompt:
        """Token ids, and marks: the row of ``vectors`` that a soft token stands for, 0 for words.

        A user is the word "user" (TALLRec's prompts have no user IDs either), in the soft stage followed by his soft
        token; an item is its ID, and its soft token.
        """
        soft = {self.item_names[item]: self.n_users + item for item in (*items, target)}
        soft["user"] = user
        names = [self.item_names[item] for item in items]
        slots = {"user": "user", "items": self.style.listed(names), "target": self.item_names[target]}
        ids, marks = [], []
        for word in fill(template, **slots):
            tokens = self.words.tokens(word)
            ids += tokens
            marks += [0] * len(tokens)
            if self.stage == SOFT and word in soft:
                ids.append(self.words.pad_id)  # a place only: `embed` puts the projected vector there
                marks.append(soft[word])
        return [*ids, self.words.eos_id], [*marks, 0]

    def embed(self, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.backbone.get_input_embeddings()(batch.input_ids)  # (B, T, width)
        places = batch.marks > 0
        if places.any():
            tokens = tokens.masked_scatter(
                places.unsqueeze(-1), self.projection(self.vectors[batch.marks[places]]).to(tokens.dtype)
            )
        return tokens, batch.attention_mask

    def evaluation_prompt(self, user: int) -> Prompt:
        return self.prompt(NEXT_ITEM, user, self.samples.latest(user, self.max_history))

    # ---- losses and the yes/no score --------------------------------------------------------------------------

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Cross-entropy of the next items' IDs, and of yes for the next item or no for one that the user never took.

        Which of the two a prompt asks for is drawn; so is the part of the prompts that ask (``yes_no_share``).
        """
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        if self.stage == SOFT and not self.vectors.any():
            raise TrainingError("CoLLM has no collaborative vectors yet: train it by its trainer, as run_recbole does")
        asked = [
            (user, place, self.samples.before(user, place, self.max_history))
            for user, place in zip(users.tolist(), self.samples.places(users, items))
        ]
        asked = [sample for sample in asked if sample[2]]  # nothing precedes a user's first item
        if not asked:
            return self.nothing()
        targets = [self.samples.after(user, place, self.targets_per_prompt) for user, place, _ in asked]
        prompts = [self.prompt(NEXT_ITEM, user, history) for user, _, history in asked]
        loss = self.target_loss(self.collate(prompts), targets)
        if not self.yes_no_weight:
            return loss
        rows = torch.randperm(len(asked))[: math.ceil(len(asked) * self.yes_no_share)].tolist()
        likes = torch.rand(len(rows)) < 0.5
        others = self.samples.untaken(torch.tensor([asked[row][0] for row in rows]), 1).squeeze(1).tolist()
        prompts = [
            self.prompt(YES_OR_NO, asked[row][0], asked[row][2], targets[row][0] if like else other)
            for row, other, like in zip(rows, others, likes.tolist())
        ]
        logits = self._yes_logits(prompts)  # (B,)
        answers = likes.to(logits)
        return loss + self.yes_no_weight * F.binary_cross_entropy_with_logits(logits, answers)

    def _yes_logits(self, prompts: list[Prompt]) -> torch.Tensor:
        """Logits (B,) of the token "yes" as the decoder's first."""
        hidden, mask = self.encode(self.collate(prompts))
        start = self.backbone.config.decoder_start_token_id
        start = torch.full((len(hidden), 1), self.words.pad_id if start is None else start, device=hidden.device)
        output = self.backbone(encoder_outputs=(hidden,), attention_mask=mask, decoder_input_ids=start)
        return output.logits[:, 0, self.yes_id].float()

    @torch.no_grad()
    def predict(self, interaction) -> torch.Tensor:
        """Yes-logits (B,) of the pairs; the item itself is left out of the history that the prompt lists."""
        prompts = [
            self.prompt(YES_OR_NO, user, self.samples.others(user, item, self.max_history), item)
            for user, item in zip(interaction[self.USER_ID].tolist(), interaction[self.ITEM_ID].tolist())
        ]
        step = 4 * self.eval_users
        return torch.cat([self._yes_logits(prompts[at : at + step]) for at in range(0, len(prompts), step)])


def _add_lora(backbone: nn.Module, rank: int) -> None:
    """Low-rank adapters on q and v, all other weights frozen (alpha 16, dropout .05, as CoLLM's).

    Raises:
        BackboneError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BackboneError(
            f"lora_rank: {rank} needs peft (pip install \"recbole-tokenrec[lora]\"); allowed without it: 0"
        ) from error
    settings = LoraConfig(r=rank, lora_alpha=16, lora_dropout=0.05, target_modules=["q", "v"])
    inject_adapter_in_model(settings, backbone)
