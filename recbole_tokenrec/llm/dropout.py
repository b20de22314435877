"""Dropout for CPUs: torch draws one random number for every element there, and that took a quarter of a training step.

Here 64 random bits serve eight elements: the same dropout with its rate rounded to a multiple of 1/256 (and the scale
of what is kept rounded with it). On other devices torch's own fused kernels are left in place.

:func:`use_cheap_dropout` puts it into a transformers model: its ``nn.Dropout`` modules and, where the model's attention
can be chosen by name (T5 in transformers 5), the dropout on the attention weights.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

ATTENTION = "recbole_tokenrec"  # our attention's name in transformers' registry


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """``F.dropout(x, p, training=True)`` with p rounded to a multiple of 1/256; torch's own off the CPU."""
    steps = round(256 * p)
    if x.device.type != "cpu" or not 0 < steps < 256:
        return F.dropout(x, p, training=True)
    return x * keep_factors(x, steps)


def keep_factors(x: torch.Tensor, steps: int) -> torch.Tensor:
    """Independent factors in the shape and type of ``x``: 0 with probability steps / 256, else 256 / (256 - steps)."""
    n = x.numel()
    words = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)  # None: through the largest int64
    scale = 256 / (256 - steps)
    # Bytes below ``steps`` end at or below 0, the others at ``scale`` or above: clamping is the comparison, done in
    # whole vectors, which a comparison to booleans and its way back to numbers are not.
    factors = words.view(torch.uint8)[:n].to(x.dtype).sub_(steps - 1).mul_(scale).clamp_(0, scale)
    return factors.view(x.shape)


class Dropout(nn.Dropout):
    """``nn.Dropout`` by :func:`dropout`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p) if self.training and self.p else x


def use_cheap_dropout(model: nn.Module) -> None:
    """Replace the dropout of a transformers model, in place. What it computes without dropout stays the same."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    if _register_attention(model):
        model.set_attn_implementation(ATTENTION)


def attention(module, query, key, value, attention_mask, dropout: float = 0.0, position_bias=None, **kwargs):
    """Attention of T5, where scores are not scaled; without dropout, or off the CPU, it is transformers' SDPA.

    SDPA has no kernel for dropout beside a bias that learns, and takes the long way round then.

    Args:
        query, key, value: (B, heads, T, d_head).
        attention_mask: (B or 1, 1, T or 1, T) boolean; None: all, or in a decoder (``module.is_causal``) what came
            before, for which transformers hands over no mask.
        position_bias: (1, heads, T, T).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not dropout or query.device.type != "cpu" or position_bias is None or kwargs.get("scaling") != 1.0:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, position_bias=position_bias, **kwargs
        )
    scores = query @ key.transpose(2, 3) + position_bias
    if attention_mask is None and module.is_causal and query.shape[2] > 1:
        attention_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if attention_mask is not None:
        scores = scores + torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill_(
            ~attention_mask, torch.finfo(scores.dtype).min
        )
    weights = _drop(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous(), None


_drop = dropout  # ``attention`` takes transformers' argument of the same name


def _register_attention(model: nn.Module) -> bool:
    """Make :func:`attention` known to transformers; False if this version or model cannot choose it by name."""
    try:
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
        from transformers.modeling_utils import AttentionInterface
        from transformers.models.t5 import modeling_t5
    except ImportError:
        return False
    by_name = hasattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS") and model.config.model_type == "t5"
    if not by_name or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    return True
