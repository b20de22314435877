"""Cross-attention of a decoder that asks once: T5's own, without projecting every position of the prompt.

The decoder runs one step here, so a layer's cross-attention has one query a head, q. T5 projects all T positions to
keys and values, 4 T width^2 operations, to use them once. The same comes from the states X (T, width) themselves:

    scores  q (X W_k)^T = (q W_k^T) X^T          output  a (X W_v) = (a X) W_v

which costs 4 T width operations a head: a seventh of a T5-small's whole work is saved.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from recbole_tokenrec.llm.dropout import dropout


def ask_once(model: nn.Module) -> None:
    """Let the decoder's cross-attentions take the short way when they are asked once. Parameters stay as they are.

    For T5 of transformers 5, whose attention's interface this follows; any other model is left alone.
    """
    single, original = _classes()
    for module in model.modules() if single is not None else ():
        if type(module) is original and module.is_decoder and not module.has_relative_attention_bias:
            module.__class__ = single


def ask_as_transformers(model: nn.Module) -> None:
    """Undo :func:`ask_once`."""
    single, original = _classes()
    for module in model.modules():
        if single is not None and type(module) is single:
            module.__class__ = original


@functools.lru_cache(maxsize=1)
def _classes():
    """(our class, T5's own), or (None, None) for a transformers with another interface."""
    try:
        from transformers.models.t5 import modeling_t5
    except ImportError:
        return None, None
    if not hasattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS"):
        return None, None

    class SingleQueryAttention(modeling_t5.T5Attention):
        """T5Attention by the module's equations, where it is a cross-attention of one query without a cache."""

        def forward(self, hidden_states, mask=None, key_value_states=None, position_bias=None, cache=None, **kwargs):
            once = key_value_states is not None and cache is None and hidden_states.shape[1] == 1
            if not once:
                return super().forward(hidden_states, mask, key_value_states, position_bias, cache=cache, **kwargs)
            (batch, length, width), heads = key_value_states.shape, self.n_heads
            query = self.q(hidden_states).view(batch, heads, -1)  # (B, H, d)
            turned = torch.einsum("bhd,hdw->bhw", query, self.k.weight.view(heads, -1, width))
            scores = turned @ key_value_states.transpose(1, 2)  # (B, H, T)
            if mask is not None and mask.dtype == torch.bool:  # (B, 1, 1, T)
                scores = scores.masked_fill(~mask[:, :, 0], torch.finfo(scores.dtype).min)
            elif mask is not None:
                scores = scores + mask[:, :, 0]
            weights = scores.softmax(dim=-1)
            if self.training and self.dropout:
                weights = dropout(weights, self.dropout)
            pooled = weights @ key_value_states  # (B, H, width)
            answer = torch.einsum("bhw,hdw->bhd", pooled, self.v.weight.view(heads, -1, width))
            if position_bias is None:  # zeros, which the other layers are handed
                position_bias = scores.new_zeros(1, heads, 1, length)
            return self.o(answer.reshape(batch, 1, -1)), position_bias, None

    return SingleQueryAttention, modeling_t5.T5Attention
