"""Honeybee's D-Abstractor (2312.06742, section 3.2): queries that look around their own place by
deformable attention (Deformable DETR, 2010.04159, section 4.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.config import DAbstractorConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Attention, by_shape, check_heads, start_at


class DAbstractorProjector(Projector):
    """side × side tokens in reading order, whatever the image's grid.

    Queries start as the features pooled to side × side and look from learned reference points,
    which start at the centres of that grid's cells. Raises ConfigError if heads do not divide the
    width.
    """

    def __init__(self, config: DAbstractorConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        width = config.width or vision
        self.input = nn.Sequential(nn.Linear(vision, width), nn.LayerNorm(width))
        self.positions = nn.Parameter(torch.randn(config.side**2, width) * 0.02)
        centre = (torch.arange(config.side) + 0.5) / config.side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        self.points = nn.Parameter(torch.stack([x, y], -1).flatten(0, 1).logit())
        self.layers = nn.ModuleList(
            Layer(width, config.heads, config.points) for _ in range(config.layers)
        )
        self.out = nn.Linear(width, language)
        start_at(scale, self.out)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return self.config.side, self.config.side

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return by_shape(self._abstract, features, grids)

    def _abstract(self, x: Tensor) -> Tensor:
        """[n h w D] -> [n side² language]"""
        x = self.input(x)
        queries = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.config.side)
        queries = queries.flatten(2).transpose(1, 2)
        for layer in self.layers:
            queries = layer(queries, self.positions, self.points.sigmoid(), x)
        return self.out(queries)


class Layer(nn.Module):
    """Queries [n Q D] with positions [Q D] look at each other, from points [Q 2] at features
    [n h w D], then an MLP; a norm after each (2010.04159, section 4.1)."""

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        self.self_attention = Attention(width, width, heads)
        self.self_norm = nn.LayerNorm(width)
        self.cross_attention = DeformableAttention(width, heads, points)
        self.cross_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, points: Tensor, features: Tensor) -> Tensor:
        placed = x + positions
        x = self.self_norm(x + self.self_attention(placed, placed, x))
        x = self.cross_norm(x + self.cross_attention(x + positions, points, features))
        return self.mlp_norm(x + self.down(F.relu(self.up(x))))


class DeformableAttention(nn.Module):
    """Each head of a query mixes a few places around its reference point (2010.04159, equation 2).

    Offsets (in patches) and weights are linear in the query. They start as that paper's appendix
    says: even weights, and places 1, 2, … patches away, each head in a direction of its own.
    """

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.offsets = nn.Linear(width, heads * points * 2)
        self.weights = nn.Linear(width, heads * points)
        self.values = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        angle = 2 * math.pi * torch.arange(heads) / heads
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1)[:, None] * direction[:, None]  # [H K 2]
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(steps.flatten())

    def forward(self, queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
        """queries [n Q D], points [Q 2] as x, y in 0…1, features [n h w D] -> [n Q D]"""
        n, Q, _ = queries.shape
        H, (h, w) = self.heads, features.shape[1:3]
        values = self.values(features).view(n, h, w, H, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        offsets = self.offsets(queries).view(n, Q, H, -1, 2) / queries.new_tensor([w, h])
        places = (points[:, None, None] + offsets).transpose(1, 2).flatten(0, 1)  # [n·H Q K 2]
        weights = self.weights(queries).view(n, Q, H, -1).softmax(-1)
        weights = weights.transpose(1, 2).flatten(0, 1)  # [n·H Q K]
        # In fp32: in bfloat16 a place would be off by up to 1/256 of the image.
        seen = F.grid_sample(values.float(), 2 * places.float() - 1, align_corners=False)
        mixed = (seen.to(values.dtype) * weights[:, None]).sum(-1)  # [n·H d Q]
        return self.out(mixed.view(n, -1, Q).transpose(1, 2))
