"""Whether bfloat16 is worth it on this machine: measured, not guessed."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch import Tensor


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
