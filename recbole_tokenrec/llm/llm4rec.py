"""LLM4Rec: prompt -> T5 -> hidden state h_i -> three-layer projection -> z_i (Eq. 17-18).

The encoder reads the prompt; the decoder is asked for a single step, from its start token, and that one hidden
state is h_i. The released code ran twenty decoder positions to the same end.
"""

from __future__ import annotations

import torch
from torch import nn

from recbole_tokenrec.llm.backbone import Backbone
from recbole_tokenrec.llm.prompts import PromptBatch


class LLM4Rec(nn.Module):
    """Backbone and projection.

    Args:
        backbone: see :func:`recbole_tokenrec.llm.backbone.load_backbone`.
        output_dim: d of the collaborative representations.
        hidden_size: width of the projection's two hidden layers.
        dropout: between the projection's layers.
    """

    def __init__(self, backbone: Backbone, output_dim: int, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.backbone = backbone.model
        start = self.backbone.config.decoder_start_token_id
        self.start_id = self.backbone.config.pad_token_id if start is None else start
        width = self.backbone.config.d_model
        self.projection = nn.Sequential(
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, output_dim),
        )

    def forward(self, prompt: PromptBatch) -> torch.Tensor:
        """Prompts (B, T) -> z (B, d)."""
        start = torch.full((len(prompt.input_ids), 1), self.start_id, device=prompt.input_ids.device)
        hidden = self.backbone(
            input_ids=prompt.input_ids,
            attention_mask=prompt.attention_mask,
            decoder_input_ids=start,
            use_cache=False,
        ).last_hidden_state  # (B, 1, width)
        return self.projection(hidden[:, 0].float())  # (B, d)

    @torch.no_grad()
    def start_token_embeddings(self, token_ids: torch.Tensor, codewords: torch.Tensor, seed: int) -> None:
        """Start OOV token embeddings from the codebooks' geometry (design decision 6).

        The codewords of each codebook are centred, brought to the vocabulary's own spread and turned into the
        model's width by one fixed random orthogonal map per codebook, so that tokens that are near as codewords
        start near as words, and codebooks do not start on top of each other.

        Args:
            token_ids: (K * L,) in the order of ``codewords``.
            codewords: (K, L, d_c).
        """
        table = self.backbone.get_input_embeddings().weight
        words = torch.ones(len(table), dtype=torch.bool)
        words[token_ids.cpu()] = False
        spread = table[words.to(table.device)].std()
        generator = torch.Generator().manual_seed(seed)
        width, (_, _, dim) = table.shape[1], codewords.shape
        rows = []
        for book in codewords.float().cpu():
            turn = torch.linalg.qr(torch.randn(max(width, dim), min(width, dim), generator=generator))[0]
            turn = turn.T if dim <= width else turn  # (d_c, width)
            row = (book - book.mean(dim=0)) @ turn
            rows.append(row * (spread.cpu() / row.std().clamp_min(1e-8)))
        table[token_ids.to(table.device)] = torch.cat(rows).to(table)
