"""Muon: momentum whose matrices are orthogonalised before they are applied.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); scaled to
AdamW's update size as Moonshot's "Muon is scalable for LLM training" (2502.16982, section 2.2).
torch.optim.Muon runs its iteration in bfloat16 one matrix at a time, which on a CPU without
bfloat16 units costs six times the whole training step (LOG.md); this one takes the dtype that is
fast here and orthogonalises all matrices of one shape together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from chiasm.train.fsdp import full, like

# Coefficients of the quintic iteration that drives singular values to about 1 in five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """[N rows columns] -> the nearest semi-orthogonal matrices, singular values near 1."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = _A * x + (_B * a + _C * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For hidden matrices [rows columns] and convolutions (flattened to [out, in·k·k]);
    embeddings, heads, norms and biases belong to AdamW.

    The update is lr · 0.2 · sqrt(max(rows, columns)) · orthogonalize(Nesterov momentum): the root
    mean square of AdamW's, so both share learning rates. iterations: of the orthogonalisation;
    fewer cost less and leave small singular values small, which some models mind (LOG.md).
    dtype: of the iteration only; bfloat16
    is exact enough for it (Jordan et al.), momentum and weights keep theirs.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        iterations: int = 5,
    ):
        self.dtype, self.iterations = dtype, iterations
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._step_shape(group, shape, parameters)

    def _step_shape(self, group: dict, shape: torch.Size, parameters: list[Tensor]) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            assert parameter.grad is not None
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            direction = parameter.grad.lerp(state["momentum"], group["momentum"])
            directions.append(full(direction))  # only whole matrices have singular values
        flat = torch.stack([d.reshape(shape[0], -1) for d in directions])
        updates = orthogonalize(flat.to(self.dtype), self.iterations).to(flat.dtype)
        scale = group["lr"] * 0.2 * max(updates.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            update = like(update.view(shape), parameter)
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-scale)
