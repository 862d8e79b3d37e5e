"""What a stage computes: the model's own cost model, asked of a model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """One micro-batch: tokens, images and FLOPs (forward and backward), parts as in
    core.protocols.Cost. micro_batches: a step; steps: of the stage."""

    tokens: int
    images: int
    parts: dict[str, float]
    micro_batches: int
    steps: int

    @property
    def flops(self) -> float:
        return sum(self.parts.values())

    @property
    def per_token(self) -> float:
        return self.flops / max(1, self.tokens)

    @property
    def per_step(self) -> float:
        return self.flops * self.micro_batches

    @property
    def total(self) -> float:
        return self.per_step * self.steps

    @property
    def tokens_seen(self) -> int:
        return self.tokens * self.micro_batches * self.steps

    @property
    def images_seen(self) -> int:
        return self.images * self.micro_batches * self.steps


def work_of(model: Any, batch: Any, micro_batches: int, steps: int) -> Work:
    """Of a model whose parameters require gradients as in the stage, on a typical batch. Only
    shapes are looked at, so neither needs to hold numbers."""
    cost = model.cost(batch)
    parts = cost.parts or {"model": cost.flops}
    return Work(int(cost.tokens), int(cost.images), parts, micro_batches, steps)
