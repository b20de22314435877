"""TokenRec as a RecBole GeneralRecommender.

The model owns the parts and computes the loss of the stage it is in; ``TokenRecTrainer`` walks the stages (see
``training/stages.py``). The way of the data:

    collaborative model -> user_vectors p, item_vectors q          Section 2.3.1
    tokenizers          -> user_codes, item_codes                  Section 2.3.2-2.3.5
    prompts, LLM4Rec    -> z, one vector per user                  Section 2.4
    cosine(z, q)        -> scores over all items                   Eq. 19

Everything is made from the training data set that RecBole passes in; see ``histories.py``.
"""

from __future__ import annotations

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch.nn import functional as F

from recbole_tokenrec.collaborative.representations import (
    build_collaborative,
    representations,
    trainable_representations,
)
from recbole_tokenrec.errors import DataError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.llm.backbone import add_id_tokens, backbone_state, load_backbone, rebuild_backbone
from recbole_tokenrec.llm.llm4rec import LLM4Rec
from recbole_tokenrec.llm.prompts import NUM_SEEN, PromptBuilder, all_texts, id_token_names
from recbole_tokenrec.settings import read_settings
from recbole_tokenrec.tokenizers import build_tokenizer
from recbole_tokenrec.training.loaders import (
    ENTITY,
    HISTORY,
    HISTORY_LENGTH,
    TARGET_LENGTH,
    TARGETS,
    TEMPLATE,
)
from recbole_tokenrec.training.losses import pairwise_cosine_loss, softmax_cosine_loss

COLLABORATIVE, USER_TOKENIZER, ITEM_TOKENIZER, LLM = "cf", "user_tokenizer", "item_tokenizer", "llm"


class TokenRec(GeneralRecommender):
    """See the module's docstring.

    Attributes:
        stage: the stage whose loss ``calculate_loss`` returns and whose scores ``full_sort_predict`` returns.
        collaborative_score: ``cosine`` or ``dot``, for scores of the collaborative stage.
        user_vectors, item_vectors: (n_users, d), (n_items, d); frozen after the collaborative stage.
        user_codes, item_codes: (n_users, K), (n_items, K); frozen after the tokenizer stage.
        evaluation_histories: what prompts list at evaluation; the training histories unless the trainer adds to them.
    """

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.settings = settings = read_settings(config)
        self.seed = int(config["seed"])
        self.stage, self.collaborative_score = LLM, "cosine"
        self.other_parameter_name = ["stage", "collaborative_score"]
        self.histories = self.evaluation_histories = Histories.from_dataset(dataset)
        if self.n_items < 3 or len(self.histories.items) == 0:
            raise DataError(
                f"dataset '{config['dataset']}': {self.n_items - 1} items and {len(self.histories.items)} training "
                "interactions are too few to train on"
            )

        self.collaborative = build_collaborative(settings, config, dataset)
        users, items = representations(self.collaborative)
        self.register_buffer("user_vectors", users)
        self.register_buffer("item_vectors", items)

        dim, books, size = items.shape[1], settings.mq_num_codebooks, settings.mq_codebook_size
        self.user_tokenizer = build_tokenizer(settings, dim)
        self.item_tokenizer = build_tokenizer(settings, dim)
        self.register_buffer("user_codes", torch.zeros(self.n_users, books, dtype=torch.long))
        self.register_buffer("item_codes", torch.zeros(self.n_items, books, dtype=torch.long))

        saved = config["llm_backbone_state"]  # of a checkpoint: no weights need to be fetched again
        backbone = rebuild_backbone(saved) if saved else load_backbone(
            settings.llm_backbone, all_texts(), dropout=settings.llm_dropout
        )
        self.backbone_state = backbone_state(backbone)
        user_names, item_names = id_token_names(books, size)
        self.user_token_ids = add_id_tokens(backbone, user_names)
        self.item_token_ids = add_id_tokens(backbone, item_names)
        self.backbone_origin, self.tokenizer = backbone.origin, backbone.tokenizer
        self.llm = LLM4Rec(backbone, dim, settings.llm_projection_size, settings.llm_dropout or 0.0)
        self.prompts = PromptBuilder(
            backbone.tokenizer,
            books,
            size,
            self.user_token_ids,
            self.item_token_ids,
            settings.prompt_history,
            settings.prompt_style,
            settings.prompt_max_tokens,
        )
        self._encoded_users = None

    # ---- training ---------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Loss of the current stage; each stage's loader yields the fields that its loss reads."""
        self._encoded_users = None
        if self.stage == COLLABORATIVE:
            return self._collaborative_loss(interaction)
        if self.stage in (USER_TOKENIZER, ITEM_TOKENIZER):
            tokenizer, vectors = self.tokenizer_parts(self.stage)
            return tokenizer.loss(tokenizer(vectors[interaction[ENTITY]]))
        if TARGETS in interaction:
            return self._user_major_loss(interaction)
        return self._interaction_loss(interaction)

    def tokenizer_parts(self, stage: str):
        """Tokenizer and representations of the stage ``user_tokenizer`` or ``item_tokenizer``."""
        if stage == USER_TOKENIZER:
            return self.user_tokenizer, self.user_vectors
        return self.item_tokenizer, self.item_vectors

    def _collaborative_loss(self, interaction) -> torch.Tensor:
        if self.settings.cf_loss == "bpr":
            return self.collaborative.calculate_loss(interaction)
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        user_vectors, item_vectors = trainable_representations(self.collaborative)
        present, rows, count = users.unique(return_inverse=True, return_counts=True)
        weights = count.float().pow(self.settings.cf_target_weight - 1)[rows]
        loss = softmax_cosine_loss(
            user_vectors[present], item_vectors, rows, items, self.settings.cf_temperature, weights
        )
        if self.settings.cf_reg_weight:
            ego_users = self.collaborative.user_embedding(present)
            ego_items = self.collaborative.item_embedding(items)
            ego = ego_users.pow(2).sum() / len(present) + ego_items.pow(2).sum() / len(items)
            loss = loss + self.settings.cf_reg_weight * ego
        return loss

    def _user_major_loss(self, interaction) -> torch.Tensor:
        z = self.encode(
            interaction[self.USER_ID], int(interaction[TEMPLATE][0]), interaction[HISTORY], interaction[HISTORY_LENGTH]
        )
        targets, number = interaction[TARGETS], interaction[TARGET_LENGTH]
        valid = torch.arange(targets.shape[1], device=targets.device) < number.unsqueeze(1)
        rows = torch.repeat_interleave(torch.arange(len(z), device=z.device), number)
        items = targets[valid]
        if self.settings.llm_loss == "softmax":
            weights = 1.0 / number.float()[rows]
            return softmax_cosine_loss(z, self.item_vectors, rows, items, self.settings.llm_temperature, weights)
        negatives = torch.randint(1, self.n_items, items.shape, device=items.device)
        return pairwise_cosine_loss(
            z[rows], self.item_vectors[items], self.item_vectors[negatives], self.settings.llm_margin
        )

    def _interaction_loss(self, interaction) -> torch.Tensor:
        """One target a prompt, RecBole's sampled negative: the paper's way."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        template = int(torch.randint(min(NUM_SEEN, self.prompts.num_templates), (1,)))
        history, number = self._history_without(users, items, template)
        z = self.encode(users, template, history, number)
        if self.settings.llm_loss == "softmax":
            rows = torch.arange(len(z), device=z.device)
            return softmax_cosine_loss(z, self.item_vectors, rows, items, self.settings.llm_temperature)
        negatives = self.item_vectors[interaction[self.NEG_ITEM_ID]]
        return pairwise_cosine_loss(z, self.item_vectors[items], negatives, self.settings.llm_margin)

    def _history_without(self, users: torch.Tensor, items: torch.Tensor, template: int):
        """A random part of each user's history that leaves out the target: padded (B, M) and number (B,)."""
        number = self.histories.counts()[users.cpu()]
        history, _ = self.histories.latest(users.cpu(), int(number.max()))
        keys = torch.rand(history.shape)
        keys[(torch.arange(history.shape[1]) >= number.unsqueeze(1)) | (history == items.cpu().unsqueeze(1))] = 2.0
        number = (keys < 2).sum(dim=1).clamp_max(self.history_limit(template))
        chosen = keys.argsort(dim=1)[:, : int(number.max())]
        return history.gather(1, chosen).to(users.device), number.to(users.device)

    # ---- encoding and scoring ---------------------------------------------------------------------------------

    def history_limit(self, template: int | None = None) -> int:
        """Most items of a prompt; without a template, what every template can hold."""
        if not self.settings.prompt_history:
            return 0
        templates = range(self.prompts.num_templates) if template is None else [template]
        return min(self.settings.prompt_max_history, *(self.prompts.capacity(t) for t in templates))

    def encode(self, users: torch.Tensor, template: int, history=None, number=None) -> torch.Tensor:
        """z of B users (Eq. 15-18). ``history`` (B, M) item ids, the first ``number`` (B,) of each row count."""
        items = None if history is None or not self.settings.prompt_history else self.item_codes[history]
        prompt = self.prompts.build(template, self.user_codes[users], items, number)
        with torch.autocast(users.device.type, torch.bfloat16, enabled=self.settings.llm_precision == "bf16"):
            return self.llm(prompt)

    @torch.no_grad()
    def encode_users(self, users: torch.Tensor) -> torch.Tensor:
        """z of many users at evaluation, in batches of similar length: (B,) -> (B, d)."""
        template = NUM_SEEN if self.settings.prompt == "unseen" else 0
        limit = self.history_limit(template)
        count = self.evaluation_histories.counts()[users.cpu()].clamp_max(limit)
        order = torch.argsort(count, descending=True, stable=True)
        z = torch.empty(len(users), self.item_vectors.shape[1], device=users.device)
        start = 0
        while start < len(order):
            longest = int(count[order[start]])
            rows = order[start : start + self._users_per_batch(longest)]
            history, number = self.evaluation_histories.latest(users[rows].cpu(), limit)
            z[rows] = self.encode(users[rows], template, history.to(users.device), number.to(users.device))
            start += len(rows)
        return z

    def _users_per_batch(self, items: int) -> int:
        """How many prompts of ``items`` items the memory budget lets through the backbone at once."""
        config = self.llm.backbone.config
        length = 64 + items * (self.settings.mq_num_codebooks + 2)
        per_user = 4 * length * (config.num_heads * length + 4 * config.d_ff + 12 * config.d_model)
        return int(max(1, min(512, self.settings.memory_budget_gb * 2**30 / 2 / per_user)))

    @torch.no_grad()
    def remember_users(self) -> None:
        """Encode every user once, for the evaluation that follows; forgotten at the next training step."""
        self._encoded_users = self.encode_users(torch.arange(self.n_users, device=self.item_vectors.device))

    def forget_users(self) -> None:
        self._encoded_users = None

    def _query_and_items(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors whose dot products are the current stage's scores."""
        if self.stage == COLLABORATIVE:
            queries, items = self.user_vectors[users], self.item_vectors
            if self.collaborative_score == "dot":
                return queries, items
        elif self._encoded_users is not None:
            queries, items = self._encoded_users[users], self.item_vectors
        else:
            queries, items = self.encode_users(users), self.item_vectors
        return F.normalize(queries, dim=-1), F.normalize(items, dim=-1)

    def refresh_representations(self) -> None:
        """Copy p and q out of the collaborative model."""
        users, items = representations(self.collaborative)
        self.user_vectors.copy_(users)
        self.item_vectors.copy_(items)

    def predict(self, interaction) -> torch.Tensor:
        """Scores (B,) of the pairs in ``interaction``; cosine in [-1, 1] once the model is trained (Eq. 19)."""
        queries, items = self._query_and_items(interaction[self.USER_ID])
        return (queries * items[interaction[self.ITEM_ID]]).sum(dim=-1)

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Scores of B users over all items, flat: (B * n_items,)."""
        queries, items = self._query_and_items(interaction[self.USER_ID])
        return (queries @ items.T).view(-1)
