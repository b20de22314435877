"""Masked Vector-Quantized tokenizer: Sections 2.3.2 to 2.3.5, Eq. 2 to 14.

One class serves users and items. The K encoders are one stack of batched matrices: K small products in one call
instead of K modules, the same mathematics several times faster.

Deviations, each off in the preset ``paper``: linear short cuts around the encoders and the decoder (``mq_skip``), so
that the networks need only learn what a linear map cannot; a start from the data (``mq_kmeans_init``, see
:meth:`MQTokenizer.start_from`); revival of dead codewords (``mq_revive_dead``). The last two are the trainer's to call.

Why a start from the data: K encoders that start at random and are pooled by a mean learn to say the same thing K
times; a fifth codebook then adds next to nothing. Given K orthogonal parts of the space, each says its own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F

from recbole_tokenrec.tokenizers.base import IDTokenizer, TokenizerOutput

_MINI_BATCH_ABOVE = 50_000  # rows from which full k-means costs more than it gains
ROWS_PER_CODEWORD = 256  # more data than that moves a k-means centre no further; what FAISS takes too
_MOST_DISTANCES = 2**22  # numbers of one array of many rows and all codebooks: 16 MiB, about what a cache holds


class KWayMLP(nn.Module):
    """K independent multilayer perceptrons of the same shape, side by side. (B, d_in) -> (K, B, d_out)"""

    def __init__(self, ways: int, sizes: list[int]):
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(sizes, sizes[1:]):
            weight = torch.empty(ways, fan_in, fan_out)
            for way in weight:  # as nn.Linear starts, drawn anew for each of the K ways
                nn.init.kaiming_uniform_(way.T, a=math.sqrt(5))
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(ways, 1, fan_out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.biases[-1], self.hidden(x), self.weights[-1])

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d_in) -> (K, B, width): all but the last layer."""
        x = x.expand(self.weights[0].shape[0], *x.shape)  # (K, B, d_in)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1]):
            x = F.gelu(torch.baddbmm(bias, x, weight))
        return x


def nearest_codeword(encoded: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Eq. 5: index of the codeword at the least Euclidean distance.

    |a - c|^2 = |a|^2 - 2ac + |c|^2; |a|^2 is the same for all codewords, so that one product (K, B, L) is enough
    and no (B, L, d_c) difference is ever built; for many rows or large codebooks it is made in parts.

    Args:
        encoded: (K, B, d_c).
        codebooks: (K, L, d_c).

    Returns:
        (K, B) int64.
    """
    rows = max(1, _MOST_DISTANCES // (codebooks.shape[0] * codebooks.shape[1]))
    lengths, turned = codebooks.pow(2).sum(-1).unsqueeze(1), codebooks.transpose(1, 2)
    parts = [
        torch.baddbmm(lengths, part, turned, alpha=-2.0).argmin(dim=-1)  # (K, b, L) -> (K, b)
        for part in encoded.split(rows, dim=1)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class MQTokenizer(IDTokenizer):
    """K-way encoder, K-way codebook and K-to-1 decoder for users or for items.

    Args:
        input_dim: d of the collaborative representations.
        num_codebooks: K.
        codebook_size: L.
        codeword_dim: d_c.
        hidden_size: width of the three hidden layers of each encoder and of the decoder's two.
        masking_ratio: rho of Eq. 2, in [0, 1].
        beta: weight of the commitment loss, Eq. 13.
        skip: add a linear map from input to output to each encoder and to the decoder.
    """

    def __init__(
        self,
        input_dim: int,
        num_codebooks: int,
        codebook_size: int,
        codeword_dim: int = 64,
        hidden_size: int = 256,
        masking_ratio: float = 0.2,
        beta: float = 0.25,
        skip: bool = False,
    ):
        super().__init__(input_dim, num_codebooks, codebook_size)
        self.masking_ratio = masking_ratio
        self.beta = beta
        self.encoders = KWayMLP(num_codebooks, [input_dim, *[hidden_size] * 3, codeword_dim])
        self.encoder_skip = KWayMLP(num_codebooks, [input_dim, codeword_dim]) if skip else None
        self.decoder_skip = nn.Linear(codeword_dim, input_dim) if skip else None
        self.codebooks = nn.Parameter(torch.empty(num_codebooks, codebook_size, codeword_dim))
        nn.init.uniform_(self.codebooks, -1 / codebook_size, 1 / codebook_size)
        self.decoder = nn.Sequential(
            nn.Linear(codeword_dim, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, input_dim),
        )

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """Eq. 2-3: each element is hidden (set to 0) with probability rho; drawn anew at every call.

        ``x`` is standardised here, in every preset: what is hidden reads as the feature's mean, not as 0.
        """
        if self.masking_ratio == 0 or not self.training:
            return x
        return x * torch.bernoulli(torch.full_like(x, 1 - self.masking_ratio))

    def encoded(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised (and masked) input (B, d) -> (K, B, d_c), Eq. 4."""
        deep = self.encoders(x)
        return deep if self.encoder_skip is None else deep + self.encoder_skip(x)

    def decoded(self, pooled: torch.Tensor) -> torch.Tensor:
        """Average-pooled codewords (B, d_c) -> standardised reconstruction (B, d), Eq. 9."""
        deep = self.decoder(pooled)
        return deep if self.decoder_skip is None else deep + self.decoder_skip(pooled)

    def quantize(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoded (K, B, d_c) -> codewords (K, B, d_c) and indices (K, B), Eq. 5-6."""
        indices = nearest_codeword(encoded, self.codebooks)
        ways = torch.arange(self.num_codebooks, device=indices.device).unsqueeze(1)
        return self.codebooks[ways, indices], indices

    def forward(self, x: torch.Tensor) -> TokenizerOutput:
        target = self.standardise(x)  # (B, d)
        encoded = self.encoded(self.mask(target))  # (K, B, d_c)
        chosen, indices = self.quantize(encoded)
        # Straight-through: the decoder sees the codewords, its gradient reaches the encoders as it is.
        # The codebooks get no gradient here; they learn by the codebook loss alone (Eq. 11).
        passed = encoded + (chosen - encoded).detach()
        reconstruction = self.decoded(passed.mean(dim=0))  # (B, d)
        return TokenizerOutput(
            quantized=self.restore(reconstruction),
            indices=indices.T,
            losses={
                "reconstruction": squared_distance(reconstruction, target),  # Eq. 10
                "codebook": squared_distance(chosen, encoded.detach()),  # Eq. 11
                "commitment": squared_distance(encoded, chosen.detach()),  # Eq. 12
            },
        )

    def loss(self, output: TokenizerOutput) -> torch.Tensor:
        """Eq. 13 (items) and Eq. 14 (users)."""
        losses = output.losses
        return losses["reconstruction"] + losses["codebook"] + self.beta * losses["commitment"]

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Eq. 4-5. Of more rows than a codeword is wide, the last linear maps are multiplied by the codewords first."""
        if len(x) <= self.codebooks.shape[2]:
            return nearest_codeword(self.encoded(self.standardise(x)), self.codebooks).T
        turned = self.codebooks.transpose(1, 2)  # (K, d_c, L)
        maps = [self.encoders] if self.encoder_skip is None else [self.encoders, self.encoder_skip]
        offset = turned.pow(2).sum(dim=1, keepdim=True) - 2 * sum(part.biases[-1] for part in maps) @ turned
        maps = [(part, part.weights[-1] @ turned) for part in maps]  # (K, width, L)
        codes = []
        for rows in self.standardise(x).split(max(1, _MOST_DISTANCES // offset.numel())):
            distance = offset.repeat(1, len(rows), 1)  # |a - c|^2 - |a|^2, (K, b, L)
            for part, weight in maps:
                distance.baddbmm_(part.hidden(rows), weight, alpha=-2.0)
            codes.append(distance.argmin(dim=-1))
        return torch.cat(codes, dim=1).T

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.restore(self.decoded(self.codewords(codes).mean(dim=1)))

    def codeword_table(self) -> torch.Tensor:
        return self.codebooks.detach()

    @torch.no_grad()
    def start_from(self, x: torch.Tensor, seed: int) -> None:
        """Encoders on orthogonal parts of the space (with short cuts only), then codewords by k-means.

        The principal axes of ``x`` (n, d) are dealt out to the K encoders, largest first, each to the encoder whose
        axes have the least product of variances so far; the decoder's short cut turns them back. The networks
        beside the short cuts start near 0, so each codebook's clusters are found in the d / K coordinates of its own
        axes; its codewords are the clusters' means as encoded. With fewer distinct rows than codewords the
        remaining codewords are left where they are; of many rows a random part is enough.
        """
        x = self.standardise(some_rows(x, ROWS_PER_CODEWORD * self.codebook_size, seed))
        along = self.split_space(x) if self.encoder_skip is not None else []
        if any(rows.shape[1] == 0 for rows in along) or not along:  # no axes of its own to tell rows apart by
            along = self.encoded_in_chunks(x)
        labels = k_means(along, self.codebook_size, seed)
        totals, counts = torch.zeros_like(self.codebooks), torch.zeros_like(self.codebooks[..., :1])
        for part, label in zip(x.split(self.rows_at_once()), labels.split(self.rows_at_once(), dim=1)):
            for way, rows in enumerate(self.encoded(part)):  # (b, d_c) of (K, b, d_c)
                totals[way].index_add_(0, label[way], rows)
                counts[way].index_add_(0, label[way], torch.ones_like(rows[:, :1]))
        self.codebooks.copy_(torch.where(counts > 0, totals / counts.clamp_min(1), self.codebooks))

    def encoded_in_chunks(self, x: torch.Tensor) -> torch.Tensor:
        """:meth:`encoded` of many standardised rows (n, d) -> (K, n, d_c), few at once."""
        return torch.cat([self.encoded(part) for part in x.split(self.rows_at_once())], dim=1)

    def rows_at_once(self) -> int:
        """So many that no array of :meth:`encoded` leaves the cache."""
        return max(1, _MOST_DISTANCES // (self.codebooks.shape[0] * self.codebooks.shape[2]))

    def split_space(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Short cuts along the principal axes of standardised ``x`` (n, d); its coordinates (n, d / K) for each way."""
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))  # ascending
        variance, axes = variance.flip(0).clamp_min(1e-6), axes.flip(1)
        width = self.codebooks.shape[2]
        ways = len(self.encoder_skip.weights[0])
        room = -(-min(width, self.input_dim) // ways)
        parts: list[list[int]] = [[] for _ in range(ways)]
        logs = (variance.log() - variance.log().min()).tolist()
        for axis in range(min(width, self.input_dim)):
            open_parts = [part for part in parts if len(part) < room]
            min(open_parts, key=lambda part: sum(logs[a] for a in part)).append(axis)
        for parameter in (*self.encoder_skip.parameters(), *self.decoder_skip.parameters()):
            parameter.zero_()
        for way, part in enumerate(parts):
            self.encoder_skip.weights[0][way][:, part] = axes[:, part]
        kept = min(width, self.input_dim)
        self.decoder_skip.weight[:, :kept] = axes[:, :kept] * ways  # undoes the mean over K
        if self.encoders is not None:
            self.encoders.weights[-1].mul_(0.05)
            self.decoder[-1].weight.mul_(0.05)
        return [x @ axes[:, part] for part in parts]

    @torch.no_grad()
    def revive_dead_codewords(self, x: torch.Tensor, use: torch.Tensor) -> int:
        dead = use == 0  # (K, L)
        if not dead.any():
            return 0
        rows = x[torch.randperm(len(x), device=x.device)[: int(dead.sum(dim=1).max())]]
        for book, given, places in zip(self.codebooks, self.given(self.standardise(rows)), dead):
            places = places.nonzero().squeeze(1)[: len(rows)]
            book[places] = given[torch.randperm(len(rows), device=x.device)[: len(places)]]
        return int(dead.sum())

    def given(self, x: torch.Tensor) -> torch.Tensor:
        """What each codebook has to choose a codeword for: standardised rows (B, d) -> (K, B, d_c)."""
        return self.encoded(x)


class FrozenMQTokenizer(MQTokenizer):
    """MQ-Tokenizer whose encoders stay at their random start: what the paper's released code came to.

    No gradient reached its encoders. Codebooks and decoder learn; the codebooks still start by k-means if asked to.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in (self.encoders, self.encoder_skip):
            if module is not None:
                module.requires_grad_(False)

    def split_space(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The encoders keep their random start."""
        return []


def some_rows(x: torch.Tensor, most: int, seed: int) -> torch.Tensor:
    """``x`` (n, d) itself, or ``most`` of its rows drawn at random."""
    if len(x) <= most:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most].to(x.device)]


def k_means(parts: Sequence[torch.Tensor], size: int, seed: int) -> torch.Tensor:
    """Clusters (K, n) int64 of each of K ``parts`` (n, d): at most ``size``, or as many as rows differ.

    Parts are clustered side by side, on one thread each: threads of scikit-learn that share one clustering wait for
    each other in a loop, which takes several times as long as soon as another process is on one of the cores.
    """
    at_once = torch.get_num_threads()
    distinct, places = zip(*(torch.unique(part, dim=0, return_inverse=True) for part in parts))
    rows = [part.double().cpu().numpy() for part in distinct]  # of floats it would convert some for each centre
    with warnings.catch_warnings(), threadpool_limits(1), ThreadPoolExecutor(at_once) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # rows that differ by rounding only share a centre
        labels = list(pool.map(lambda part, way: _clusters(part, size, seed + way), rows, range(len(rows))))
    return torch.stack([torch.from_numpy(one).long().to(at.device)[at] for one, at in zip(labels, places)])


def _clusters(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    method = MiniBatchKMeans if len(rows) > _MINI_BATCH_ABOVE else KMeans
    fitted = method(min(size, len(rows)), n_init=1, max_iter=20, random_state=seed, init="k-means++")
    with threadpool_limits(1, "openmp"):  # a limit of the caller's thread is none of this one's
        return fitted.fit(rows).labels_


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the squared l2 norm per entity; a leading axis of K ways is summed (Eq. 11-12).

    Args:
        a, b: (B, d) or (K, B, d).
    """
    return (a - b).pow(2).sum(dim=-1).mean(dim=-1).sum()
