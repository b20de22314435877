"""Product quantisation: k-means in K orthogonal parts of the space, no encoder and nothing learnt but a linear decoder.

It is where :class:`MQTokenizer` starts from under ``mq_kmeans_init``; beside it one sees what MQ's training adds.
"""

from __future__ import annotations

import torch

from recbole_tokenrec.tokenizers.mq import MQTokenizer, nearest_codeword


class KMeansTokenizer(MQTokenizer):
    """MQ-Tokenizer reduced to its linear short cuts; codewords are k-means centres and stay there."""

    def __init__(self, input_dim: int, num_codebooks: int, codebook_size: int, **options):
        super().__init__(input_dim, num_codebooks, codebook_size, **{**options, "skip": True})
        self.encoders = self.decoder = None
        self.encoder_skip.requires_grad_(False)
        self.codebooks.requires_grad_(False)

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder_skip(x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return nearest_codeword(self.encoded(self.standardise(x)), self.codebooks).T

    def decoded(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.decoder_skip(pooled)

    def loss(self, output) -> torch.Tensor:
        """The reconstruction alone: there is no encoder to commit and no codebook to learn."""
        return output.losses["reconstruction"]

    def revive_dead_codewords(self, x: torch.Tensor, use: torch.Tensor) -> int:
        return 0
