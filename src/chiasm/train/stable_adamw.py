"""AdamW whose step shrinks where a gradient outgrows its past.

StableAdamW (Wortsman et al., "Stable and low-precision training for large-scale vision-language
models", 2304.13013, algorithm 2): AdamW with AdaFactor's update clipping, a matrix at a time, which
removes the loss spikes that follow an out-of-date second moment.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class StableAdamW(torch.optim.Optimizer):
    """lr is divided by max(1, RMS), RMS² = mean(g² / max(v, eps²)), for each parameter."""

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(group, parameter, parameter.grad)

    def _step_one(self, group: dict, parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        t = state["step"].item()
        # The debiased averages are kept themselves, with betas that rise from 0 (algorithm 2).
        mean_beta, square_beta = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in group["betas"])
        state["mean"].lerp_(gradient, 1 - mean_beta)
        state["square"].lerp_(gradient.square(), 1 - square_beta)
        floor = state["square"].clamp(min=group["eps"] ** 2)
        rms = (gradient.square() / floor).mean().sqrt()
        # Parts of a parameter cannot meet a whole scalar: there the host reads it.
        held = isinstance(rms, DTensor)
        rate = group["lr"] / (max(1.0, rms.full_tensor().item()) if held else rms.clamp(min=1.0))
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(state["mean"] / (state["square"].sqrt() + group["eps"]) * rate)
