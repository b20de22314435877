"""Residual quantisation (RQ-VAE, as in TIGER): one encoder, K codebooks in a row, each for what the ones before left.

Same contract, masking, loss weights and start from data as :class:`MQTokenizer`, so that an ablation changes one name.
The order of the tokens matters here: the first is coarse, the later ones refine it.
"""

from __future__ import annotations

import torch

from recbole_tokenrec.tokenizers.base import TokenizerOutput
from recbole_tokenrec.tokenizers.mq import (
    ROWS_PER_CODEWORD,
    MQTokenizer,
    k_means,
    nearest_codeword,
    some_rows,
    squared_distance,
)


class RQTokenizer(MQTokenizer):
    """One-way encoder and decoder of the MQ-Tokenizer around K residual codebooks.

    Args: as :class:`MQTokenizer`.
    """

    def __init__(self, input_dim: int, num_codebooks: int, codebook_size: int, **options):
        super().__init__(input_dim, 1, codebook_size, **options)
        self.num_codebooks = num_codebooks
        width = self.codebooks.shape[2]
        self.codebooks = torch.nn.Parameter(torch.empty(num_codebooks, codebook_size, width))
        torch.nn.init.uniform_(self.codebooks, -1 / codebook_size, 1 / codebook_size)

    def residuals(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoded (B, d_c) -> what each codebook is given (K, B, d_c), and the index it chooses (K, B)."""
        given, chosen = [], []
        rest = encoded
        for book in self.codebooks:
            index = nearest_codeword(rest.unsqueeze(0), book.unsqueeze(0))[0]
            given.append(rest)
            chosen.append(index)
            rest = rest - book[index].detach()
        return torch.stack(given), torch.stack(chosen)

    def forward(self, x: torch.Tensor) -> TokenizerOutput:
        target = self.standardise(x)  # (B, d)
        encoded = self.encoded(self.mask(target))[0]  # (B, d_c)
        given, indices = self.residuals(encoded)
        words = self.codewords_at(indices)  # (K, B, d_c)
        passed = encoded + (words.sum(dim=0) - encoded).detach()
        reconstruction = self.decoded(passed)
        return TokenizerOutput(
            quantized=self.restore(reconstruction),
            indices=indices.T,
            losses={
                "reconstruction": squared_distance(reconstruction, target),
                "codebook": squared_distance(words, given.detach()),
                "commitment": squared_distance(given, words.detach()),
            },
        )

    def codewords_at(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (K, B) -> codewords (K, B, d_c)."""
        return self.codebooks[torch.arange(self.num_codebooks, device=indices.device).unsqueeze(1), indices]

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.residuals(self.encoded(self.standardise(x))[0])[1].T

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.restore(self.decoded(self.codewords_at(codes.T).sum(dim=0)))

    @torch.no_grad()
    def start_from(self, x: torch.Tensor, seed: int) -> None:
        x = self.standardise(some_rows(x, ROWS_PER_CODEWORD * self.codebook_size, seed))
        if self.encoder_skip is not None:
            self.split_space(x)
        rest = self.encoded_in_chunks(x)[0]
        for level, book in enumerate(self.codebooks):
            labels = k_means([rest], self.codebook_size, seed + level)[0]
            counts = labels.bincount(minlength=len(book)).unsqueeze(1)
            means = torch.zeros_like(book).index_add_(0, labels, rest) / counts.clamp_min(1)
            book.copy_(torch.where(counts > 0, means, book))
            rest = rest - book[nearest_codeword(rest.unsqueeze(0), book.unsqueeze(0))[0]]

    def given(self, x: torch.Tensor) -> torch.Tensor:
        return self.residuals(self.encoded(x)[0])[0]
