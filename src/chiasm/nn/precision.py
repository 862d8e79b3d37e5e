"""Whether bfloat16 is worth it on this machine: measured, not guessed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["auto", "bfloat16", "none"]


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


def working_dtype(choice: Precision, device: torch.device) -> torch.dtype:
    """What matrix products are computed in: "auto" is bfloat16 where the device has it (CUDA) or
    where it was measured to be faster. Never float16, whose range gradients leave."""
    fast = choice == "auto" and _has_bfloat16(device.type)
    return torch.bfloat16 if fast or choice == "bfloat16" else torch.float32


def _has_bfloat16(device: str) -> bool:
    if device == "cuda":  # also where emulated, which is slow
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bfloat16_speedup(device) > 1.3


def autocast(choice: Precision, device: torch.device) -> torch.autocast:
    """The context that forward passes run in."""
    dtype = working_dtype(choice, device)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def held_in(device: torch.device) -> Literal["fp32", "bf16"]:
    """What the weights of a model that only gives replies are held in by default: bfloat16 on
    accelerators that have it, where half the memory is read for every token; fp32 on CPUs."""
    if device.type == "cuda":
        return "bf16" if _has_bfloat16("cuda") else "fp32"
    return "bf16" if device.type == "mps" else "fp32"


def round_weights(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Hold a model's floating-point parameters in a lower dtype from now on; their full precision
    is lost. Buffers stay: angles of positions are no weights."""
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


class LoweredWeights:
    """A model's untrained parameters, held in the dtype that autocast would cast them to in every
    step; of a frozen language model the activations then stay in it as well (LOG.md).

    The values at full precision stay in main memory; `restored` puts them back for a while, one
    after the other, so that no device holds all of them in both precisions.
    LayerNorm and GroupNorm keep theirs: their kernels take no lower parameters than activations,
    and give activations back in the dtype they came in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
        kept = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
        frozen = [p for p in model.parameters() if not p.requires_grad and id(p) not in kept]
        full = [p for p in frozen if p.dtype == torch.float32 != dtype]
        self._dtype = dtype
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        for weight in full:
            self._held.append((weight, weight.data.cpu()))
            weight.data = weight.data.to(dtype)

    def _lower(self) -> None:
        for weight, _ in self._held:
            weight.data = weight.data.to(self._dtype)

    def restore(self) -> None:
        for weight, full in self._held:
            weight.data = full.to(weight.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        self.restore()
        try:
            yield
        finally:
            self._lower()
