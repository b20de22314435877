"""Several targets after one reading of a prompt: the decoder walks the tree of their IDs.

IDs share beginnings, all of them the start token. What the decoder computes after a beginning depends on nothing
else, so that each is a single decoder position, whatever number of targets goes on from it: for 64 items of a user some
60 positions instead of 256. A position attends to its own ancestors, and T5's relative positions are differences of
depth. T5 itself counts positions in a row; the attention mask, which is added to its bias, carries the difference.

That an ID ends is learnt soon and takes a position for each target: only ``end_share`` of the ends are written, with
the more weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from recbole_tokenrec.generative.trie import Trie


class Tree(NamedTuple):
    """What the decoder writes for B prompts with at most P positions each, and where the S labels are read.

    Attributes:
        nodes: (B, P) nodes of the trie, the root first; ``trie.n_nodes`` is padding.
        row: (S,) prompt of a label.
        target: (S,) number of its target.
        position: (S,) position that predicts it.
        token: (S,) the label.
        weight: (S,) 1, or more for an end that stands for others.
    """

    nodes: torch.Tensor
    row: torch.Tensor
    target: torch.Tensor
    position: torch.Tensor
    token: torch.Tensor
    weight: torch.Tensor


def plant(trie: Trie, rows: torch.Tensor, items: torch.Tensor, n_rows: int, end_share: float = 1.0) -> Tree:
    """The tree of the targets ``items`` (M,) of the prompts ``rows`` (M,), each below ``n_rows``."""
    path = trie.path[items]  # (M, depth)
    parents = torch.cat([path.new_zeros(len(path), 1), path[:, :-1]], dim=1)  # the root is node 0
    last = trie.item[path] > 0
    keep = path < trie.n_nodes
    weight = torch.ones(path.shape, device=path.device)
    if end_share < 1:
        written = torch.rand(len(path), device=path.device) < end_share
        keep &= written.unsqueeze(1) | ~last
        weight = torch.where(last, 1 / end_share, weight)
    target, step = keep.nonzero(as_tuple=True)
    width = trie.n_nodes + 1
    places, at = torch.unique(rows[target] * width + parents[target, step], return_inverse=True)  # ascending
    row = places // width
    count = torch.bincount(row, minlength=n_rows)
    position = torch.arange(len(places), device=path.device) - (count.cumsum(0) - count)[row]
    nodes = torch.full((n_rows, max(int(count.max()), 1)), trie.n_nodes, device=path.device)
    nodes[row, position] = places % width
    token = trie.token[path[target, step]]
    return Tree(nodes, rows[target], target, position[at], token, weight[target, step])


def attention(backbone, trie: Trie, nodes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, heads, P, P): the decoder's mask, ancestors only, with the bias of depths in place of that of positions."""
    layer = backbone.get_decoder().block[0].layer[0].SelfAttention
    size = nodes.shape[1]
    depth = trie.level[nodes]  # (B, P)
    apart = depth.unsqueeze(1) - depth.unsqueeze(2)  # key's depth less the query's
    buckets = layer._relative_position_bucket(
        apart,
        bidirectional=False,
        num_buckets=layer.relative_attention_num_buckets,
        max_distance=layer.relative_attention_max_distance,
    )
    bias = layer.relative_attention_bias(buckets).permute(0, 3, 1, 2)  # (B, heads, P, P)
    ancestor, allowed = nodes, torch.zeros_like(apart, dtype=torch.bool)
    for _ in range(trie.depth):
        allowed |= ancestor.unsqueeze(2) == nodes.unsqueeze(1)
        ancestor = trie.parent[ancestor]
    in_a_row = layer.compute_bias(size, size)  # (1, heads, P, P), which T5 adds
    return (bias - in_a_row).masked_fill(~allowed.unsqueeze(1), torch.finfo(dtype).min).to(dtype)


def log_likelihood(backbone, hidden, mask, trie: Trie, tree: Tree) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (S,) of the tree's labels, without their weights.

    Args:
        hidden: (B, T, width), the encoder's output; ``mask`` (B, T).
    """
    start = backbone.config.decoder_start_token_id
    tokens = trie.token[tree.nodes]
    tokens[tree.nodes == 0] = backbone.config.pad_token_id if start is None else start
    tokens[tree.nodes == trie.n_nodes] = backbone.config.pad_token_id
    logits = backbone(
        encoder_outputs=(hidden,),
        attention_mask=mask,
        decoder_input_ids=tokens,
        decoder_attention_mask=attention(backbone, trie, tree.nodes, hidden.dtype),
    ).logits  # (B, P, vocab)
    return F.log_softmax(logits.float(), dim=-1)[tree.row, tree.position, tree.token]
