"""Residual quantisation with one codebook for all depths (RQ-VAE, 2203.01941, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from chiasm.unified.config import ResidualVQConfig
from chiasm.unified.quantizers.base import Quantized
from chiasm.unified.quantizers.vq_ema import VQEMA


class ResidualVQ(VQEMA):
    """`depth` codes a place: the nearest to the vector, then to what that leaves, and so on.

    The codes of a place stand side by side, coarse to fine: a grid of h × w places has codes
    [h, w · depth]. Since the codebook is shared they are numbered alike, and whatever a model
    draws in whatever order is an image.
    """

    def __init__(self, config: ResidualVQConfig):
        super().__init__(config)
        self.depth = config.depth

    def forward(self, z: Tensor) -> Quantized:
        points = z.movedim(1, -1).float()
        flat = points.reshape(-1, self.width)
        fresh = self._begin(flat.detach()) if self.training else None
        left, values, penalty = flat.detach(), torch.zeros_like(flat), flat.new_zeros(())
        residuals, chosen = [], []
        for _ in range(self.depth):
            residuals.append(left)
            chosen.append(self.nearest(left))
            step = self.embedding[chosen[-1]]
            values, left = values + step, left - step
            # The paper's equation 7: every partial sum is to be near.
            penalty = penalty + self.config.commitment * F.mse_loss(flat, values)
        if fresh is not None:
            self._follow(torch.cat(residuals), torch.cat(chosen), fresh)
        codes = torch.stack(chosen, 1).view(*points.shape[:-2], -1)
        values = points + (values.view_as(points) - points).detach()
        return Quantized(values.movedim(-1, 1), codes, penalty)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.embedding[codes.unflatten(-1, (-1, self.depth))].sum(-2)
