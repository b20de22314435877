"""Muon for the matrices of linear layers, AdamW for all else, as one optimizer: ``llm_optimizer: muon``.

Muon (Jordan et al. 2024) makes of each matrix's momentum a matrix whose singular values are all near 1, so that a step
goes as far in the directions that gradients rarely take as in those they always take. The factor of Liu et al. 2025,
Eq. 4, makes a step as large as AdamW's, so that one learning rate and one weight decay serve both.

Why not ``torch.optim.Muon``: it came with torch 2.9, knows matrices alone, and takes them one by one and in bfloat16,
which processors without instructions for it compute many times slower. Here those of one shape go together, in the
gradients' own precision or, where training is in bfloat16 anyway, in that, as Jordan does.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from recbole_tokenrec.training.adamw import fused

MOMENTUM = 0.95
_STEPS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # Jordan's polynomial: steep at 0, and never far from 1 once it is there
_LIKE_ADAMW = 0.2  # root mean square of AdamW's step over its learning rate, about


class Muon(torch.optim.AdamW):
    """AdamW but for parameter groups with ``muon: True``, whose parameters are matrices.

    Args:
        groups: parameter groups, of :func:`with_matrices_apart`.
        lr: learning rate of all of them.
        low_precision: orthogonalise in bfloat16, whose three digits are more than the iteration's own accuracy.
    """

    def __init__(self, groups: list[dict], lr: float, low_precision: bool = False):
        super().__init__(groups, lr=lr, fused=fused(groups))
        self.low_precision = low_precision

    def step(self, closure=None):
        every = self.param_groups
        self.param_groups = [group for group in every if not group.get("muon")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group.get("muon"):
                self._step_matrices(group)
        return loss

    @torch.no_grad()
    def _step_matrices(self, group: dict) -> None:
        by_shape = defaultdict(list)
        for matrix in group["params"]:
            if matrix.grad is not None:
                by_shape[matrix.shape].append(matrix)
        for (rows, columns), matrices in by_shape.items():
            momenta = torch.stack([self._momentum(matrix) for matrix in matrices])
            gradients = torch.stack([matrix.grad for matrix in matrices])
            turned = orthogonalised(gradients.lerp(momenta, MOMENTUM), self.low_precision)  # Nesterov's look ahead
            size = group["lr"] * _LIKE_ADAMW * max(rows, columns) ** 0.5
            for matrix, step in zip(matrices, turned):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-size)

    def _momentum(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["step"] = torch.zeros(())  # AdamW looks for it in whatever state it loads
            state["momentum"] = torch.zeros_like(matrix)
        return state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)


def with_matrices_apart(groups: list[dict], module: nn.Module) -> list[dict]:
    """``groups`` with the weights of the linear layers of ``module`` in groups of their own, marked ``muon``."""
    linear = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    apart = []
    for group in groups:
        for muon in (False, True):
            parameters = [one for one in group["params"] if (id(one) in linear) == muon]
            if parameters:
                apart.append({**group, "params": parameters, "muon": muon})
    return apart


def orthogonalised(matrices: torch.Tensor, low_precision: bool = False) -> torch.Tensor:
    """U V^T of each U S V^T of (n, rows, columns), but for singular values of about 0.7 to 1.2 in place of 1.

    Newton-Schulz iteration of Jordan et al., in bfloat16 if ``low_precision``; a matrix of zeros stays one.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    x = x.bfloat16() if low_precision else x
    for _ in range(_STEPS):
        squares = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=_B, alpha=_C), x, beta=_A)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)
