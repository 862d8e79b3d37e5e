"""What every quantizer gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Quantized(NamedTuple):
    """values [B C h w] with straight-through gradients, codes [B h w·depth] int64, penalty: a
    scalar mean to add to the reconstruction loss (0 where the quantizer needs none)."""

    values: Tensor
    codes: Tensor
    penalty: Tensor


class Quantizer(nn.Module):
    """codes: size of the codebook; width: channels of the values; depth: codes a place."""

    codes: int
    width: int
    depth: int = 1

    def forward(self, z: Tensor) -> Quantized:
        """z [B width h w]"""
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [... n·depth] -> values [... n width]"""
        raise NotImplementedError

    def features(self) -> Tensor:
        """[codes F], near 1 in size: alike for codes that stand for alike things."""
        raise NotImplementedError

    def flops(self, places: int) -> float:
        """What finding the codes of so many places costs beside arithmetic on single values."""
        return 0.0


def code_counts(codes: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs, [size] int64; unlike bincount it does not look for the
    largest first, which would wait for the device."""
    codes = codes.reshape(-1)
    return torch.zeros(size, dtype=torch.long, device=codes.device).scatter_add(
        0, codes, torch.ones_like(codes)
    )
