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

import contextlib

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch.nn import functional as F

from recbole_tokenrec.collaborative.ensemble import members_of
from recbole_tokenrec.collaborative.representations import build_collaborative, representations, unfilled
from recbole_tokenrec.errors import DataError
from recbole_tokenrec.histories import Histories, take
from recbole_tokenrec.llm.backbone import (
    add_id_tokens,
    backbone_state,
    load_backbone,
    rebuild_backbone,
    weights_digest,
)
from recbole_tokenrec.llm.llm4rec import LLM4Rec
from recbole_tokenrec.llm.prompts import NUM_SEEN, PromptBuilder, all_texts
from recbole_tokenrec.settings import read_settings
from recbole_tokenrec.snapshot import DataSnapshot
from recbole_tokenrec.tokenizers import build_tokenizer, token_names
from recbole_tokenrec.tokenizers.id_tokens import ITEM_LETTER, USER_LETTER
from recbole_tokenrec.training.loaders import (
    HISTORY,
    HISTORY_LENGTH,
    TARGET_ITEMS,
    TARGET_ROWS,
    TEMPLATE,
    USER_CODES,
    VECTORS,
    VISIBLE_ITEMS,
    VISIBLE_ROWS,
)
from recbole_tokenrec.training.losses import Teacher, fast_bf16, pairwise_cosine_loss, softmax_cosine_loss
from recbole_tokenrec.training.parts import InTurn, in_turn
from recbole_tokenrec.training.sampling import draw_candidates

_BYTES_PER_NUMBER = 20  # a pair's query, the same of length 1, its item and their product, four bytes each, and room
COLLABORATIVE, USER_TOKENIZER, ITEM_TOKENIZER, LLM = "cf", "user_tokenizer", "item_tokenizer", "llm"


class TokenRec(GeneralRecommender):
    """See the module's docstring.

    Attributes:
        stage: the stage whose loss ``calculate_loss`` returns and whose scores ``full_sort_predict`` returns.
        collaborative_score: ``cosine`` or ``dot``, for scores of the collaborative stage.
        user_vectors, item_vectors: (n_users, d), (n_items, d); frozen after the collaborative stage.
        retrieval_vectors: (n_items, d), where items are retrieved; beside item_vectors with ``llm_item_offset`` only.
        user_codes, item_codes: (n_users, K), (n_items, K); frozen after the tokenizer stage.
        distill: ``llm_distill`` of the running epoch.
        evaluation_histories: what prompts list at evaluation; the training histories but within :meth:`reading`.
    """

    input_type = InputType.PAIRWISE
    check_config = staticmethod(read_settings)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.settings = settings = read_settings(config)
        self.seed = int(config["seed"])
        self.stage, self.collaborative_score, self.distill = LLM, "cosine", settings.llm_distill
        self.other_parameter_name = ["stage", "collaborative_score"]
        self.histories = self.evaluation_histories = Histories.from_dataset(dataset)
        if self.n_items < 3 or len(self.histories.items) == 0:
            raise DataError(
                f"dataset '{config['dataset']}': {self.n_items - 1} items and {len(self.histories.items)} training "
                "interactions are too few to train on"
            )

        self.collaborative = build_collaborative(settings, config, dataset).to(self.device)  # it is asked right away
        rebuilt = isinstance(dataset, DataSnapshot)  # of a trained model, whose weights are read next
        users, items = (unfilled if rebuilt else representations)(self.collaborative)
        self.register_buffer("user_vectors", users)
        self.register_buffer("item_vectors", items)

        dim, size = items.shape[1], settings.mq_codebook_size
        item_books = settings.mq_num_codebooks
        user_books = settings.mq_user_num_codebooks or item_books
        self.user_tokenizer = build_tokenizer(settings, dim, user_books)
        self.item_tokenizer = build_tokenizer(settings, dim, item_books)
        self.register_buffer("user_codes", torch.zeros(self.n_users, user_books, dtype=torch.long))
        self.register_buffer("item_codes", torch.zeros(self.n_items, item_books, dtype=torch.long))

        saved = config["llm_backbone_state"]  # of a checkpoint: no weights need to be fetched again
        backbone = rebuild_backbone(saved) if saved else load_backbone(
            settings.llm_backbone, all_texts(), dropout=settings.llm_dropout
        )
        self.backbone_digest = [] if saved else weights_digest(settings.llm_backbone)  # of the files as they were read
        self.backbone_state, self.backbone_origin = backbone_state(backbone), backbone.origin
        self.tokenizer = backbone.tokenizer
        self.user_token_ids = add_id_tokens(backbone, token_names(USER_LETTER, user_books, size))
        self.item_token_ids = add_id_tokens(backbone, token_names(ITEM_LETTER, item_books, size))
        moved = self.n_items if settings.llm_item_offset else 0
        self.llm = LLM4Rec(backbone, dim, settings.llm_projection_size, settings.llm_dropout or 0.0, moved)
        self.prompts = PromptBuilder(
            backbone.tokenizer,
            self.user_token_ids.view(user_books, size),
            self.item_token_ids.view(item_books, size),
            settings.prompt_history,
            settings.prompt_style,
            settings.prompt_max_tokens,
        )
        self._encoded_users = None

    # ---- training ---------------------------------------------------------------------------------------------

    @property
    def low_precision(self) -> bool:
        precision = self.settings.precision
        return precision == "bf16" or (precision == "auto" and fast_bf16(self.item_vectors.device))

    def calculate_loss(self, interaction) -> torch.Tensor:
        """Loss of the current stage; each stage's loader yields the fields that its loss reads."""
        self._encoded_users = None
        if self.stage == COLLABORATIVE:
            return self.collaborative.calculate_loss(interaction)
        with torch.autocast(self.item_vectors.device.type, torch.bfloat16, enabled=self.low_precision):
            return self._stage_loss(interaction)

    @property
    def retrieval_vectors(self) -> torch.Tensor:
        offset = self.llm.item_offset
        return self.item_vectors if offset is None else F.normalize(self.item_vectors, dim=-1) + offset.weight

    def _stage_loss(self, interaction) -> torch.Tensor:
        if self.stage in (USER_TOKENIZER, ITEM_TOKENIZER):
            tokenizer = self.user_tokenizer if self.stage == USER_TOKENIZER else self.item_tokenizer
            return tokenizer.loss(tokenizer(interaction[VECTORS]))
        if TARGET_ROWS in interaction:
            return self._user_major_loss(interaction)
        return self._interaction_loss(interaction)

    def _user_major_loss(self, interaction) -> torch.Tensor:
        settings, users = self.settings, interaction[self.USER_ID]
        template = int(interaction[TEMPLATE][0])
        codes = interaction[USER_CODES] if USER_CODES in interaction else self.user_codes[users]
        rows, items = interaction[TARGET_ROWS], interaction[TARGET_ITEMS]
        visible = interaction[VISIBLE_ROWS], interaction[VISIBLE_ITEMS]
        prompt = codes, template, interaction[HISTORY], interaction[HISTORY_LENGTH]
        weights = torch.bincount(rows, minlength=len(users)).float().pow(settings.llm_target_weight - 1)[rows]
        if settings.prompt_decoder_items:
            turn = in_turn(rows, items, *visible)
            z, visible = self._after_each(*prompt, turn, items), turn.known
            rows, items = turn.ahead(items, settings.llm_horizon)
            weights = weights[rows] / torch.bincount(rows)[rows]
            queries = self._vectors_after_each(turn) if self.distill else None
        else:
            z = self.encode(*prompt)
            queries = interaction[VECTORS] if VECTORS in interaction else self.user_vectors[users]
        if settings.llm_loss == "pairwise_cosine":
            negatives, places = torch.randint(1, self.n_items, items.shape, device=items.device), self.retrieval_vectors
            return pairwise_cosine_loss(z[rows], places[items], places[negatives], settings.llm_margin)
        candidates = draw_candidates(items, self.n_items, settings.llm_sampled_items)
        return softmax_cosine_loss(
            z,
            self.retrieval_vectors,
            rows,
            items,
            settings.llm_temperature,
            weights=weights,
            masked=visible,
            teacher=self._teacher(queries, candidates) if self.distill else None,
            low_precision=self.low_precision,
            candidates=candidates,
        )

    @torch.no_grad()
    def _teacher(self, queries, candidates) -> Teacher:
        """The collaborative stage, asked what comes beside the visible items.

        Where the user tokens are made of the visible items, so are the ``queries`` (B, d).
        """
        items = self.item_vectors if candidates is None else self.item_vectors[candidates.items]
        users = F.normalize(queries, dim=-1) / self.settings.cf_temperature
        return Teacher(users, F.normalize(items, dim=-1), self.distill)

    @torch.no_grad()
    def _vectors_after_each(self, turn: InTurn) -> torch.Tensor:
        """(P, d) what the collaborative stage makes of all that is known before each target."""
        return self.collaborative.fold_in(*turn.known, turn.known_ages, len(turn.rows))

    def _interaction_loss(self, interaction) -> torch.Tensor:
        """One target a prompt, RecBole's sampled negative: the paper's way."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        template = int(torch.randint(min(NUM_SEEN, self.prompts.num_templates), (1,)))
        history, number = self._history_without(users, items, template)
        z, places = self.encode(self.user_codes[users], template, history, number), self.retrieval_vectors
        if self.settings.llm_loss == "softmax":
            rows = torch.arange(len(z), device=z.device)
            return softmax_cosine_loss(
                z,
                places,
                rows,
                items,
                self.settings.llm_temperature,
                candidates=draw_candidates(items, self.n_items, self.settings.llm_sampled_items),
            )
        return pairwise_cosine_loss(z, places[items], places[interaction[self.NEG_ITEM_ID]], self.settings.llm_margin)

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

    def encode(
        self, user_codes: torch.Tensor, template: int, history=None, number=None, read=None, read_number=None
    ) -> torch.Tensor:
        """z of B users (Eq. 15-18): (B, d); with ``read``, one for each place in it, (B, 1 + R, d).

        Args:
            user_codes: (B, K).
            template: index of the prompt's template.
            history: (B, M) item ids, of which the first ``number`` (B,) of each row count.
            read: (B, R) item ids that the decoder reads, of which the first ``read_number`` (B,) of each row count.
        """
        items = None if history is None or not self.settings.prompt_history else self.item_codes[history]
        prompt = self.prompts.build(template, user_codes, items, number)
        base = F.normalize(self.user_tokenizer.decode(user_codes), dim=-1) if self.settings.llm_residual else None
        return self.llm(prompt, base, None if read is None else self.prompts.items(self.item_codes[read], read_number))

    def _after_each(self, codes, template, history, number, turn: InTurn, items) -> torch.Tensor:
        """z (P, d) from which each of the targets ``items`` (P,) is to be found, by those before it."""
        count = torch.bincount(turn.rows, minlength=len(codes))
        window = items.new_zeros(len(codes), int(count.max()))
        window[turn.rows, turn.places] = items
        return self.encode(codes, template, history, number, window[:, :-1], count - 1)[turn.rows, turn.places]

    @torch.no_grad()
    def encode_users(self, users: torch.Tensor, template: int | None = None) -> torch.Tensor:
        """z of many users at evaluation, in batches of similar length: (B,) -> (B, d).

        ``template``: the index of the prompt's; None: the first of those that the key ``prompt`` chooses.
        """
        if template is None:
            template = NUM_SEEN if self.settings.prompt == "unseen" else 0
        limit = self.history_limit(template)
        most = self.settings.prompt_decoder_items
        count = self.evaluation_histories.counts_of(users.cpu()).clamp_max(limit + most)
        order = torch.argsort(count, descending=True, stable=True)
        z = torch.empty(len(users), self.item_vectors.shape[1], device=users.device)
        start = 0
        while start < len(order):
            longest = int(count[order[start]])
            rows = order[start : start + self._users_per_batch(longest)]
            latest, number = self.evaluation_histories.latest(users[rows].cpu(), limit + most)
            z[rows] = self._encode_latest(self.user_codes[users[rows]], template, latest, number)
            start += len(rows)
        return z

    def _encode_latest(self, codes, template, latest, number) -> torch.Tensor:
        """z (B, d) from the latest items (B, M): the decoder reads the last of them, the prompt lists the others."""
        device, most = codes.device, self.settings.prompt_decoder_items
        if not most:
            return self.encode(codes, template, latest.to(device), number.to(device))
        read_number = (number - 1).clamp(0, most)  # the prompt keeps an item
        listed = number - read_number
        read = take(latest.flatten(), torch.arange(len(latest)) * latest.shape[1] + listed, read_number)
        history, read = latest[:, : int(listed.max())].to(device), read.to(device)
        listed, read_number = listed.to(device), read_number.to(device)
        z = self.encode(codes, template, history, listed, read, read_number)
        return z[torch.arange(len(z), device=device), read_number]

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

    def use_encoded_users(self, encoded: torch.Tensor) -> None:
        """As :meth:`remember_users`, with what several processes have encoded together: (n_users, d)."""
        self._encoded_users = encoded

    def forget_users(self) -> None:
        self._encoded_users = None

    def _query_and_items(self, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors whose dot products are the current stage's scores."""
        if self.stage == COLLABORATIVE:
            queries, items = self.user_vectors[users], self.item_vectors
            if self.collaborative_score == "dot":
                return queries, items
        elif self._encoded_users is not None:
            queries, items = self._encoded_users[users], self.retrieval_vectors.detach()
        else:
            queries, items = self.encode_users(users), self.retrieval_vectors.detach()
        return F.normalize(queries, dim=-1), F.normalize(items, dim=-1)

    def refresh_representations(self) -> None:
        """Copy p and q out of the collaborative model."""
        users, items = representations(self.collaborative)
        self.user_vectors.copy_(users)
        self.item_vectors.copy_(items)

    def tokenizer_inputs(self, vectors: torch.Tensor) -> torch.Tensor:
        """What the tokenizers read: where cosine is all that counts, directions without lengths."""
        return F.normalize(vectors, dim=-1) if self.settings.cf_loss == "softmax_cosine" else vectors

    @torch.no_grad()
    def fold_in(self, histories: Histories, users: torch.Tensor) -> None:
        """Give ``users`` (n,) the representations and tokens that ``histories`` make of them.

        Tables, tokenizers and language model stay as they are (Fig. 3).
        """
        rows, places = histories.places(users)
        items, ages, device = histories.items[places], histories.ages()[places], self.item_vectors.device
        vectors = self.collaborative.fold_in(rows.to(device), items.to(device), ages.to(device), len(users))
        self.user_vectors[users] = vectors
        self.user_codes[users] = self.user_tokenizer.encode_all(self.tokenizer_inputs(vectors))

    @contextlib.contextmanager
    def reading(self, histories: Histories):
        """While it lasts, users are what ``histories`` make of them: prompts, vectors and tokens; no weight changes.

        Users who are rows of a trained table (``cf_user_table``, RecBole's models) keep their vectors and tokens.
        """
        kept = self.evaluation_histories, self.user_vectors, self.user_codes
        longer = (histories.counts() != self.evaluation_histories.counts()).nonzero().squeeze(1)
        self.evaluation_histories = histories
        try:
            if all(getattr(model, "user_embedding", self) is None for model in members_of(self.collaborative)):
                self.user_vectors, self.user_codes = self.user_vectors.clone(), self.user_codes.clone()
                self.fold_in(histories, longer)
            yield
        finally:
            self.evaluation_histories, self.user_vectors, self.user_codes = kept

    @torch.no_grad()
    def folded_in(self, visible: torch.Tensor) -> torch.Tensor:
        """Tokenizer inputs (n_users, d) of users as if only the ``visible`` entries (n,) of the histories existed."""
        histories = self.histories
        rows, items = histories.rows()[visible], histories.items[visible]
        ends = torch.bincount(rows, minlength=self.n_users).cumsum(0)
        ages = ends[rows] - 1 - torch.arange(len(rows))
        device = self.item_vectors.device
        vectors = self.collaborative.fold_in(rows.to(device), items.to(device), ages.to(device), self.n_users)
        return self.tokenizer_inputs(vectors)

    def predict(self, interaction) -> torch.Tensor:
        """Scores (B,) of the pairs in ``interaction``; cosine in [-1, 1] once the model is trained (Eq. 19).

        A sampled evaluation asks for millions at once: ``memory_budget_gb`` cuts them into blocks.
        """
        rows = max(1, int(self.settings.memory_budget_gb * 2**30 / (_BYTES_PER_NUMBER * self.item_vectors.shape[1])))
        scores = []
        for users, wanted in zip(interaction[self.USER_ID].split(rows), interaction[self.ITEM_ID].split(rows)):
            queries, items = self._query_and_items(users)
            scores.append((queries * items[wanted]).sum(dim=-1))
        return torch.cat(scores)

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Scores of B users over all items, flat: (B * n_items,)."""
        queries, items = self._query_and_items(interaction[self.USER_ID])
        return (queries @ items.T).view(-1)
