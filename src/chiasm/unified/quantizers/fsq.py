"""Finite scalar quantisation (Mentzer et al., 2309.15505): no codebook, nothing to collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from chiasm.unified.config import FSQConfig
from chiasm.unified.quantizers.base import Quantized, Quantizer


class FSQ(Quantizer):
    """Each channel is squashed to L levels and rounded; a code is the number with those digits.

    Values are in [-1, 1]. The bound is the paper's (section 3.1, with its half-step offset for even
    L): (L - 1)/2 · (1 + 1e-3) · tanh(z + shift) - offset.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig):
        super().__init__()
        self.codes, self.width = config.codes, config.width
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        basis = torch.cumprod(torch.tensor((1, *config.levels[:-1])), 0)
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        bounded = self._bound(z.movedim(1, -1))
        rounded = bounded + (bounded.round() - bounded).detach()
        half = self.levels // 2
        codes = ((rounded.detach() + half) * self.basis).sum(-1).round().long()
        return Quantized((rounded / half).movedim(-1, 1), codes, z.new_zeros(()))

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes[..., None] // self.basis % self.levels
        half = self.levels // 2
        return (digits - half).float() / half

    def features(self) -> Tensor:
        """A thermometer a digit: level l of L is l times 1/2, then -1/2."""
        digits = torch.arange(self.codes)[:, None].to(self.basis) // self.basis % self.levels
        steps = [
            digits[:, i, None] > torch.arange(int(level) - 1).to(digits)
            for i, level in enumerate(self.levels)
        ]
        return torch.cat(steps, 1).float() - 0.5

    def _bound(self, z: Tensor) -> Tensor:
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half)
        return (z + shift).tanh() * half - offset
