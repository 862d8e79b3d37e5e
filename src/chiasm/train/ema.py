"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from chiasm.train.fsdp import like, own


class EMA:
    """average ← average + (1 - d)(weight - average), d = min(decay, (1 + n)/(10 + n)) after n
    updates, so that the random start is soon forgotten (as TensorFlow's ExponentialMovingAverage
    with num_updates)."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.average = [p.detach().clone() for p in self.parameters]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = ([own(t.detach()) for t in x] for x in (self.average, self.parameters))
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in the model for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint: the averages by number."""
        return {str(number): average for number, average in enumerate(self.average)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse, over the same parameters."""
        for number, average in enumerate(self.average):
            average.copy_(like(tensors[str(number)], average))
        self.updates = updates
