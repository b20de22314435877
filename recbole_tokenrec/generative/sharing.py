"""Beams of one user read one prompt: cross-attention without a copy of the encoder's output for each beam.

transformers' ``generate`` repeats the encoder's output for every beam, projects keys and values of each copy, and
moves the copies whenever beams are reordered, which is most of the time that constrained IDs of a few tokens take.
Within :func:`beams_share_prompts` a user's beams are so many queries to one copy instead; the numbers are the same.
"""

from __future__ import annotations

import contextlib

_CACHES = ("cache", "past_key_values", "past_key_value")  # transformers' names of it over the years


@contextlib.contextmanager
def beams_share_prompts(backbone, num_beams: int):
    """While open, the decoder of ``backbone`` takes inputs (B * num_beams, t) for B prompts, beams side by side."""

    def before(module, args, kwargs):
        (hidden,) = args  # (B * num_beams, t, width)
        prompts = len(hidden) // num_beams
        kwargs["key_value_states"] = kwargs["key_value_states"][::num_beams]
        if kwargs.get("mask") is not None:
            kwargs["mask"] = kwargs["mask"][::num_beams, :, :1]  # the same for every query
        for name in _CACHES:
            if kwargs.get(name) is not None:
                withheld[module] = kwargs[name]
                kwargs[name] = None  # two small products a step instead
        return (hidden.reshape(prompts, -1, hidden.shape[-1]),), kwargs

    def after(module, args, kwargs, output):
        hidden = output[0]
        cache = (withheld.get(module),) if output[1] is None else output[1:2]  # older transformers return it there
        return (hidden.reshape(len(hidden) * num_beams, -1, hidden.shape[-1]), *cache, *output[2:])

    withheld = {}
    with contextlib.ExitStack() as stack:
        for block in backbone.get_decoder().block:
            attention = block.layer[1].EncDecAttention
            stack.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(attention.register_forward_hook(after, with_kwargs=True).remove)
        yield
