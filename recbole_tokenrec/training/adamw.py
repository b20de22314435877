"""torch's AdamW in its fused form, which reads and writes each array once a step.

torch takes the fused form by itself on no device. On a CPU its own choice goes over memory some ten times a step, and
a language model's token table is most of the weights there are (docs/results/performance.md has a measurement).
"""

from __future__ import annotations

import torch

_SINCE = {"cuda": (2, 1), "cpu": (2, 4)}  # torch's versions; elsewhere the choice is left to torch


def adamw(parameters, lr: float, **options) -> torch.optim.AdamW:
    """``torch.optim.AdamW`` of parameters or groups of them, fused where torch can."""
    parameters = list(parameters)
    return torch.optim.AdamW(parameters, lr=lr, fused=fused(parameters), **options)


def fused(parameters: list) -> bool | None:
    """What to give AdamW as ``fused`` for parameters or groups of them: True, or None for torch's own choice."""
    groups = [one["params"] if isinstance(one, dict) else [one] for one in parameters]
    devices = {parameter.device.type for group in groups for parameter in group}
    return all(kind in _SINCE and torch.__version__ >= _SINCE[kind] for kind in devices) or None
