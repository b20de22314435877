"""GenerativeRecommender: what P5, CID, POD and CoLLM have in common as RecBole models.

A model turns users into prompts and knows how to embed them; the rest is here: the backbone with its item IDs, the
loss of a target's tokens, beam search as ``full_sort_predict`` and the ID's log-probability as ``predict``.

RecBole's plain train loader gives (user, item) pairs; each pair becomes prompts about the user's items before that
item (:mod:`.samples`). Prompts of evaluation list training items only, at test too, as RecBole's general models.
"""

from __future__ import annotations

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType

from recbole_tokenrec.errors import CheckpointError, DataError
from recbole_tokenrec.generative.indexing import INDEXINGS, ItemIndex, build_index
from recbole_tokenrec.generative.samples import TrainingSamples
from recbole_tokenrec.generative.scoring import beam_search, beams_needed, score_matrix
from recbole_tokenrec.generative.templates import STYLES
from recbole_tokenrec.generative.trie import Trie
from recbole_tokenrec.generative.words import MAX_MARK, PromptBatch, WordEncoder
from recbole_tokenrec.generative.writing import log_likelihood, plant
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.llm.backbone import add_id_tokens, backbone_state, load_backbone, rebuild_backbone
from recbole_tokenrec.options import Option, WithOptions


class GenerativeRecommender(WithOptions, GeneralRecommender):
    """Args:
        texts: every text of the model's prompts besides IDs.

    Attributes:
        options: of the model's keys, the common ones and its own.
        item_names: (n_items,) the IDs as text.
        trie: of all IDs, each ended by EOS; no buffer, as the names determine it.
    """

    input_type = InputType.PAIRWISE
    options = {
        "llm_backbone": Option(str),
        "llm_dropout": Option(float, low=0, high=1, open_high=True, optional=True),
        "item_indexing": Option(str, choices=tuple(INDEXINGS)),
        "cid_clusters": Option(int, low=2),
        "cid_cluster_size": Option(int, low=3),
        "prompt_style": Option(str, choices=tuple(STYLES)),
        "max_history": Option(int, low=1),
        "targets_per_prompt": Option(int, low=1),
        "num_beams": Option(int, low=1, optional=True),
        "share_prompts": Option(bool),
        "eval_users": Option(int, low=1),
        "learning_rate": Option(float, low=0, open_low=True),
        "embedding_lr_ratio": Option(float, low=0, open_low=True),
        "weight_decay": Option(float, low=0),
        "warmup_ratio": Option(float, low=0, high=1, open_high=True),
    }

    def __init__(self, config, dataset, texts: list[str]):
        super().__init__(config, dataset)
        self.check_config(config)
        self.max_history, self.eval_users = config["max_history"], config["eval_users"]
        self.targets_per_prompt, self.share_prompts = config["targets_per_prompt"], config["share_prompts"]
        self.num_beams = beams_needed(config)
        self.histories = Histories.from_dataset(dataset)
        if self.n_items < 3 or len(self.histories.items) == 0:
            raise DataError(
                f"dataset '{config['dataset']}': {self.n_items - 1} items and {len(self.histories.items)} training "
                "interactions are too few to train on"
            )
        self.samples = TrainingSamples(self.histories, self.n_items)
        self.style = STYLES[config["prompt_style"]]
        self._build_backbone(config, texts)
        self.words = WordEncoder(self.tokenizer, [*self.user_names, *self.item_names])
        sequences = [[*self.words.tokens(name), self.words.eos_id] if name else [] for name in self.item_names]
        rows = self.backbone.get_input_embeddings().weight.shape[0]
        self.trie = Trie(sequences, rows, self.device)

    def _build_backbone(self, config, texts: list[str]) -> None:
        saved = config["llm_backbone_state"]  # of a checkpoint: neither weights nor IDs need to be made again
        if saved:
            backbone = rebuild_backbone(saved, with_head=True)
            index = ItemIndex(saved["item_names"], saved["item_tokens"])
            if len(index.names) != self.n_items:
                raise CheckpointError(
                    f"the checkpoint has IDs of {len(index.names)} items, the data set {self.n_items}"
                )
        else:
            backbone = load_backbone(
                config["llm_backbone"], texts, True, config["llm_dropout"], self.style.whole, self.style.digits
            )
            index = build_index(config["item_indexing"], self.histories, self.n_items, config, self.style.prefix)
        state = backbone_state(backbone)
        self.backbone_state = {**state, "item_names": index.names, "item_tokens": index.tokens}
        if index.tokens:
            ids = add_id_tokens(backbone, index.tokens)
            with torch.no_grad():  # transformers starts new rows far closer to 0 than the known words
                table = backbone.model.get_input_embeddings().weight
                table[ids] = torch.randn(len(ids), table.shape[1]) * table[: int(ids.min())].std()
        self.item_names = index.names
        self.user_names = [f"user_{user}" for user in range(self.n_users)]
        self.backbone, self.tokenizer, self.backbone_origin = backbone.model, backbone.tokenizer, backbone.origin

    def whole_word_table(self) -> torch.nn.Embedding:
        """Vectors of the marks, for models that add them to the tokens'; small beside those at first, as P5's are."""
        words = self.backbone.get_input_embeddings().weight
        table = torch.nn.Embedding(MAX_MARK + 1, words.shape[1])
        torch.nn.init.normal_(table.weight, std=0.1 * float(words.detach().std()))
        return table

    # ---- what a model adds ------------------------------------------------------------------------------------

    def evaluation_prompt(self, user: int) -> tuple[list[int], list[int]]:
        """Token ids and marks of the prompt that ``user`` gets at evaluation."""
        raise NotImplementedError

    def embed(self, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder inputs (B, T', width) and their mask (B, T')."""
        raise NotImplementedError

    # ---- training ---------------------------------------------------------------------------------------------

    def enter_last_stage(self) -> None:
        """Called before the stage that is validated and whose best epoch is kept."""

    def prepare(self, train_data, valid_data) -> list:
        """Stages to run before the last one, each a pair (what to call at its start, its epochs)."""
        return []

    def collate(self, prompts) -> PromptBatch:
        return self.words.collate(prompts, self.device)

    def target_loss(self, batch: PromptBatch, targets: list[list[int]]) -> torch.Tensor:
        """Cross-entropy of the ID tokens of each prompt's targets: mean over tokens, then over targets.

        Of the tokens that end an ID a random part is taken, see :mod:`.writing`.
        """
        rows = [row for row, part in enumerate(targets) for _ in part]
        rows = torch.tensor(rows, device=self.device)
        items = torch.tensor([item for part in targets for item in part], device=self.device)
        tree = plant(self.trie, rows, items, len(targets), self.end_share)
        found = log_likelihood(self.backbone, *self.encode(batch), self.trie, tree)
        length = (self.trie.path[items] < self.trie.n_nodes).sum(dim=1)
        return -(found * tree.weight / length[tree.target]).sum() / len(items)

    def encode(self, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's output (B, T, width) and its mask (B, T)."""
        inputs, mask = self.embed(batch)
        return self.backbone.get_encoder()(inputs_embeds=inputs, attention_mask=mask).last_hidden_state, mask

    def nothing(self) -> torch.Tensor:
        """Zero with a gradient, for a batch that holds no sample."""
        return self.backbone.get_input_embeddings().weight.sum() * 0.0

    # ---- scoring ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, interaction) -> torch.Tensor:
        """Log-probabilities (B,) of the items' IDs, given the users' evaluation prompts."""
        users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
        scores = torch.zeros(len(users), device=self.device)
        for rows in torch.arange(len(users), device=users.device).split(4 * self.eval_users):
            batch = self.collate([self.evaluation_prompt(user) for user in users[rows].tolist()])
            tree = plant(self.trie, torch.arange(len(rows), device=self.device), items[rows], len(rows))
            found = log_likelihood(self.backbone, *self.encode(batch), self.trie, tree)
            scores.index_add_(0, rows[tree.target], found)
        return scores

    @torch.no_grad()
    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Beam-search scores of all items for each user, flat: (B * n_items,); -inf for what was not generated."""
        return self.beam_scores(interaction[self.USER_ID].tolist(), self.num_beams).view(-1)

    def beam_scores(self, users: list[int], num_beams: int, exclude_seen: bool = True) -> torch.Tensor:
        """(B, n_items): of the ``num_beams`` best items of each user, -inf for the others."""
        prompts = [self.evaluation_prompt(user) for user in users]
        scores = torch.empty(len(users), self.n_items, device=self.device)
        order = sorted(range(len(users)), key=lambda row: len(prompts[row][0]))  # alike lengths: little padding
        for at in range(0, len(order), self.eval_users):
            rows = order[at : at + self.eval_users]
            hidden, mask = self.encode(self.collate([prompts[row] for row in rows]))
            closed = self._closed([users[row] for row in rows]) if exclude_seen else None
            beams = beam_search(
                self.backbone, hidden, mask, self.trie, num_beams, closed, self.constrained, self.share_prompts
            )
            scores[rows] = score_matrix(beams, self.n_items)
        return scores

    constrained = True  # POD may switch it off
    end_share = 0.125  # of the IDs' ends that training writes; tests take all

    def _closed(self, users: list[int]) -> torch.Tensor:
        items = [torch.tensor(self.samples.latest(user, self.n_items), dtype=torch.long) for user in users]
        rows = torch.repeat_interleave(torch.arange(len(users)), torch.tensor([len(part) for part in items]))
        return self.trie.closed(rows.to(self.device), torch.cat(items).to(self.device), len(users))
