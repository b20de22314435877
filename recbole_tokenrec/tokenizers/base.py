"""The contract that every tokenizer of users or items keeps, so that an ablation is a change of one name in YAML.

``forward(x)`` takes collaborative representations (B, d) and returns a :class:`TokenizerOutput`; ``encode(x)``
gives the discrete codes alone, ``decode(codes)`` the reconstruction, ``codewords(codes)`` the codeword vectors.
``encode`` never masks and never draws random numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class TokenizerOutput(NamedTuple):
    """What a tokenizer makes of B representations.

    Attributes:
        quantized: (B, d) reconstruction from the chosen codewords, r in Eq. 9.
        indices: (B, K) int64, the chosen codeword of each codebook, w in Eq. 5.
        losses: scalars by name (``reconstruction``, ``codebook``, ``commitment``); their weighted sum is trained.
    """

    quantized: torch.Tensor
    indices: torch.Tensor
    losses: dict[str, torch.Tensor]


class IDTokenizer(nn.Module):
    """Base class: K codebooks of L codewords over representations of ``input_dim`` dimensions.

    The representations' scale is measured once (:meth:`fit_scale`) and divided out inside, so that learning rates
    and loss weights mean the same for every collaborative model: a constant factor in Eq. 10.
    """

    def __init__(self, input_dim: int, num_codebooks: int, codebook_size: int):
        super().__init__()
        self.input_dim = input_dim
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.register_buffer("shift", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit_scale(self, x: torch.Tensor) -> None:
        """Measure mean and overall standard deviation of ``x`` (n, d), the entities of the training data."""
        self.shift.copy_(x.mean(dim=0))
        self.scale.copy_((x - x.mean(dim=0)).pow(2).mean().sqrt().clamp_min(1e-12))

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.shift) / self.scale

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`standardise`."""
        return x * self.scale + self.shift

    def forward(self, x: torch.Tensor) -> TokenizerOutput:
        raise NotImplementedError

    def loss(self, output: TokenizerOutput) -> torch.Tensor:
        """The scalar to train."""
        raise NotImplementedError

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d) -> codes (B, K) int64."""
        raise NotImplementedError

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, K) -> reconstructed representations (B, d) in the input's own scale."""
        raise NotImplementedError

    def codeword_table(self) -> torch.Tensor:
        """(K, L, d_c): the codewords, from which the language model's OOV token embeddings start."""
        raise NotImplementedError

    def codewords(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, K) -> their codewords (B, K, d_c), Eq. 8."""
        table = self.codeword_table()
        return table[torch.arange(self.num_codebooks, device=codes.device), codes]

    def start_from(self, x: torch.Tensor, seed: int) -> None:
        """Hook: start the parameters from data ``x`` (n, d) instead of at random."""

    def revive_dead_codewords(self, x: torch.Tensor, use: torch.Tensor) -> int:
        """Hook: move codewords whose ``use`` (K, L) is 0 onto encoded rows of ``x`` (n, d); returns how many were 0."""
        return 0

    @torch.no_grad()
    def encode_all(self, x: torch.Tensor, batch_size: int = 8192) -> torch.Tensor:
        """Codes (n, K) of many entities, in batches, in evaluation mode."""
        was_training = self.training
        self.eval()
        codes = torch.cat([self.encode(part) for part in x.split(batch_size)]) if len(x) else x.new_zeros(
            (0, self.num_codebooks), dtype=torch.long
        )
        self.train(was_training)
        return codes

    @torch.no_grad()
    def explained_variance(self, x: torch.Tensor, codes: torch.Tensor, batch_size: int = 8192) -> float:
        """1 - residual / total variance of ``x`` (n, d) under its ``codes`` (n, K); 1 is lossless, 0 is the mean."""
        residual = sum(
            (part - self.decode(code)).pow(2).sum()
            for part, code in zip(x.split(batch_size), codes.split(batch_size))
        )
        total = (x - x.mean(dim=0)).pow(2).sum()
        return float(1 - residual / total.clamp_min(1e-12))
