"""Where a bad step began: the first layer whose output outgrew that of a good batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chiasm.core.protocols import Trainable
from chiasm.nn.eval_mode import evaluating


@torch.no_grad()
def output_sizes(model: Trainable, batch: Any) -> dict[str, float]:
    """Root mean square of the output of every block in the order they run, by module name."""
    assert isinstance(model, nn.Module)
    names = {module: name for name, module in model.named_modules()}
    sizes: dict[str, float] = {}

    def record(module: nn.Module, _inputs: object, output: Any) -> None:
        first = output if isinstance(output, Tensor) else next(iter(output))
        sizes[names[module]] = first.float().square().mean().sqrt().item()

    handles = [block.register_forward_hook(record) for block in model.blocks()]
    try:
        with evaluating(model):  # dropout off, and nothing that follows the data moves
            model.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def first_grown(before: Mapping[str, float], now: Mapping[str, float], factor: float = 4.0) -> str:
    """The first layer that is not finite or more than `factor` times its size of before, else the
    one that grew most, with both sizes; "" where no layer ran in both."""
    both = [(name, before[name], size) for name, size in now.items() if name in before]
    if not both:
        return ""
    grown = [x for x in both if not math.isfinite(x[2]) or x[2] > factor * x[1]]
    name, was, size = grown[0] if grown else max(both, key=lambda x: x[2] / max(x[1], 1e-30))
    return f"{name}: {was:.3g} -> {size:.3g}"
