"""LLM4Rec: prompt -> T5 -> hidden state h_i -> three-layer projection -> z_i (Eq. 17-18).

The encoder reads the prompt; the decoder is asked for a single step, from its start token, and that one hidden
state is h_i. The released code ran twenty decoder positions to the same end.

With ``prompt_decoder_items`` the decoder goes on to read the user's latest items, one position each: its state after
each of them is an h of its own, so that one pass learns to find every one of these items from those before it.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.llm.backbone import Backbone
from recbole_tokenrec.llm.cross_attention import ask_once
from recbole_tokenrec.llm.dropout import Dropout, use_cheap_dropout
from recbole_tokenrec.llm.prompts import Entities, PromptBatch


class LLM4Rec(nn.Module):
    """Backbone and projection.

    Args:
        backbone: see :func:`recbole_tokenrec.llm.backbone.load_backbone`.
        output_dim: d of the collaborative representations.
        hidden_size: width of the projection's two hidden layers.
        dropout: between the projection's layers.
        moved_items: how many items are retrieved beside their collaborative places, by an ``item_offset`` that is
            learnt from 0 on; 0 leaves them where they are.
    """

    def __init__(
        self, backbone: Backbone, output_dim: int, hidden_size: int, dropout: float = 0.0, moved_items: int = 0
    ):
        super().__init__()
        self.backbone = backbone.model
        use_cheap_dropout(self.backbone)
        ask_once(self.backbone)
        start = self.backbone.config.decoder_start_token_id
        self.start_id = self.backbone.config.pad_token_id if start is None else start
        width = self.backbone.config.d_model
        self.projection = nn.Sequential(
            nn.Linear(width, hidden_size),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(hidden_size, output_dim),
        )
        self.item_offset = nn.Embedding(moved_items, output_dim) if moved_items else None
        if moved_items:
            nn.init.zeros_(self.item_offset.weight)
        with torch.no_grad():  # beside a base vector the projection starts as a small correction
            self.projection[-1].weight.mul_(0.3)

    def forward(
        self, prompt: PromptBatch, base: torch.Tensor | None = None, read: Entities | None = None
    ) -> torch.Tensor:
        """Prompts (B, T) -> z (B, d), or (B, 1 + R, d) with ``read``.

        Args:
            base: (B, d), is added to z: the projection then learns a correction.
            read: the items that the decoder reads after its start token, at most R of each user; ``at`` is (B, R).
        """
        words = self.backbone.get_input_embeddings()
        start = torch.full((len(prompt.input_ids), 1), self.start_id, device=prompt.input_ids.device)
        if read is None:
            decoder = {"decoder_input_ids": start}
        else:
            empty = words.weight.new_zeros(*read.at.shape, words.weight.shape[1])
            decoder = {"decoder_inputs_embeds": torch.cat([words(start), self._filled(empty, read)], dim=1)}
        embeds = words(prompt.input_ids)  # (B, T, width)
        for entities in prompt.entities:
            embeds = self._filled(embeds, entities)
        hidden = self.backbone(
            inputs_embeds=embeds, attention_mask=prompt.attention_mask, use_cache=False, **decoder
        ).last_hidden_state  # (B, 1 + R, width)
        z = self.projection(hidden.float())
        z = z if base is None else z + base.unsqueeze(1)
        return z[:, 0] if read is None else z

    def _filled(self, embeds: torch.Tensor, entities: Entities) -> torch.Tensor:
        return embeds.masked_scatter(entities.at.unsqueeze(-1), self._pooled(entities.tokens).to(embeds.dtype))

    def _pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        """One vector an entity from its ID tokens (n, K): the sum of their embeddings, at a word's scale. (n, width)"""
        table = self.backbone.get_input_embeddings().weight
        return F.embedding_bag(tokens, table, mode="sum") / tokens.shape[1] ** 0.5

    @torch.no_grad()
    def start_token_embeddings(self, token_ids: torch.Tensor, directions: torch.Tensor, scale: float, seed: int):
        """Start OOV token embeddings from what the tokens mean in the collaborative space (design decision 6).

        ``directions`` are turned into the model's width by one random orthogonal map and brought to ``scale`` times the
        vocabulary's own spread: tokens that mean similar things start as similar words. AdamW moves each weight by
        about the learning rate a step, so that small ones change faster in proportion, and T5's words are large.

        Args:
            token_ids: (K * L,).
            directions: (K * L, d), see :func:`token_directions`.
            scale: ``llm_token_scale``.
        """
        table = self.backbone.get_input_embeddings().weight
        words = torch.ones(len(table), dtype=torch.bool)
        words[token_ids.cpu()] = False
        generator = torch.Generator().manual_seed(seed)
        width, dim = table.shape[1], directions.shape[1]
        turn = torch.linalg.qr(torch.randn(max(width, dim), min(width, dim), generator=generator))[0]
        rows = directions.float().cpu() @ (turn.T if dim <= width else turn)  # (K * L, width)
        rows *= scale * table[words.to(table.device)].std().cpu() / rows.std().clamp_min(1e-8)
        table[token_ids.to(table.device)] = rows.to(table)


@torch.no_grad()
def token_directions(codes: torch.Tensor, vectors: torch.Tensor, codebook_size: int, ridge: float = 1.0):
    """What each token adds to the vectors of those who have it: the ridge regression of vectors on token indicators.

    Unlike the codewords, which live in K spaces of their own, these (K * L, d) directions lie in one space, that of
    the collaborative representations: the sum over an entity's tokens approximates its vector.

    Args:
        codes: (n, K).
        vectors: (n, d).
    """
    n, books = codes.shape
    size = books * codebook_size
    codes = codes.cpu().numpy()
    columns = (codes + np.arange(books) * codebook_size).ravel()
    tokens = sp.csr_matrix((np.ones(n * books), columns, np.arange(n + 1) * books), shape=(n, size))
    centred = (vectors - vectors.mean(dim=0)).cpu().double().numpy()
    # (T'T + r)^-1 T' = T' (TT' + r)^-1: the smaller of the two systems is solved, in the memory that it was built in.
    gram = (tokens @ tokens.T).toarray(order="F") if n < size else _together(codes, codebook_size)
    gram[np.diag_indices(len(gram))] += ridge
    right = centred if n < size else tokens.T @ centred
    found = scipy.linalg.solve(gram, right, assume_a="pos", overwrite_a=True, overwrite_b=n >= size)
    return torch.from_numpy(tokens.T @ found if n < size else found).float()


def _together(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How many entities have both tokens, for each two tokens: T'T (K * L, K * L) of codes (n, K).

    The matrix is nearly dense, a sparse product would hold it twice over; counted in blocks it is there once.
    """
    books = codes.shape[1]
    counts = np.empty((books * codebook_size, books * codebook_size), order="F")
    for a in range(books):
        rows = slice(a * codebook_size, (a + 1) * codebook_size)
        for b in range(a + 1):
            pairs = np.bincount(codes[:, a] * codebook_size + codes[:, b], minlength=codebook_size**2)
            columns = slice(b * codebook_size, (b + 1) * codebook_size)
            counts[rows, columns] = pairs.reshape(codebook_size, codebook_size)
            counts[columns, rows] = counts[rows, columns].T
    return counts
