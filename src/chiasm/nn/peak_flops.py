"""How fast this machine multiplies matrices: measured, as no machine reaches its data sheet."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

SIDES = {"cpu": 1024, "cuda": 8192}
"""Large enough to be bound by arithmetic, small enough to be done in a moment."""


@lru_cache(maxsize=8)
def gemm_peak(device: str, dtype: torch.dtype, threads: int = 0) -> float:
    """FLOP/s of square matrix products on a type of device, the best of five; measured once a
    process, dtype and number of threads (a key only)."""
    side = SIDES.get(device, 1024)
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # waits for a device
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best
