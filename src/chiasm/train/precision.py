"""Whether bfloat16 is worth it on this machine: measured, not guessed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor, nn


@lru_cache(maxsize=4)
def bfloat16_speedup(device: str) -> float:
    """How many times faster a matrix product of a language model's shape is in bfloat16."""

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(256, 576, device=device, dtype=dtype)
        b = torch.ones(576, 1536, device=device, dtype=dtype)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            product: Tensor = a @ b
            product[0, 0].item()  # waits for a device
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(torch.float32) / seconds(torch.bfloat16)


def working_dtype(choice: str, device: torch.device) -> torch.dtype:
    """What a stage's matrix products are computed in: "auto" is bfloat16 where that is faster."""
    fast = choice == "auto" and bfloat16_speedup(device.type) > 1.3
    return torch.bfloat16 if fast or choice == "bfloat16" else torch.float32


def autocast(choice: str, device: torch.device) -> torch.autocast:
    """The context a stage's forward passes run in."""
    dtype = working_dtype(choice, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


class LoweredWeights:
    """A model's untrained matrices, held in the dtype that autocast would cast them to in every
    step: of a language model under adapters that is a fifth of the step (LOG.md).

    The values at full precision stay in memory; `restored` puts them back for a while. Tables of
    embeddings are left alone, since nothing casts what is looked up in them.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        linear = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        full = [
            weight
            for key, weight in linear.items()
            if key not in tables and not weight.requires_grad
            if weight.dtype == torch.float32 != dtype
        ]
        self._held = [(weight, weight.data, weight.data.to(dtype)) for weight in full]
        self._lower()

    def _lower(self) -> None:
        for weight, _, low in self._held:
            weight.data = low

    def restore(self) -> None:
        for weight, full, _ in self._held:
            weight.data = full

    @contextmanager
    def restored(self) -> Iterator[None]:
        self.restore()
        try:
            yield
        finally:
            self._lower()
