"""Honeybee's C-Abstractor (2312.06742, section 3.2): convolutions around adaptive pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.config import CAbstractorConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Layers, by_shape


class CAbstractorProjector(Projector):
    """side × side tokens in reading order, whatever the image's grid. Honeybee's learned
    positions are left out: they fix the grid, and our encoder's features have their own."""

    def __init__(self, config: CAbstractorConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        width = config.width or vision
        self.before = nn.Sequential(
            *(ResNetBlock(width if number else vision, width) for number in range(config.blocks))
        )
        self.after = nn.Sequential(*(ResNetBlock(width, width) for _ in range(config.blocks)))
        self.layers = Layers([width, *[language] * config.layers], scale, F.silu)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return self.config.side, self.config.side

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.layers(by_shape(self._abstract, features, grids))

    def _abstract(self, x: Tensor) -> Tensor:
        """[n h w D] -> [n side² width]"""
        x = self.before(x).permute(0, 3, 1, 2)
        x = F.adaptive_avg_pool2d(x, self.config.side).permute(0, 2, 3, 1)
        return self.after(x).flatten(1, 2)


class ResNetBlock(nn.Module):
    """The block of Honeybee's code, RegNetY's (2003.13678) without a bottleneck: 1×1, 3×3 in each
    channel, squeeze-excitation (1709.01507), 1×1; LayerNorm over channels and SiLU.

    [n h w inputs] -> [n h w width]
    """

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.first = nn.Linear(inputs, width, bias=False)
        self.first_norm = nn.LayerNorm(width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.spatial_norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, max(1, inputs // 4))
        self.excite = nn.Linear(max(1, inputs // 4), width)
        self.last = nn.Linear(width, width, bias=False)
        self.last_norm = nn.LayerNorm(width)
        self.shortcut = (
            nn.Identity()
            if inputs == width
            else nn.Sequential(nn.Linear(inputs, width, bias=False), nn.LayerNorm(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first_norm(self.first(x)))
        y = self.spatial(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.silu(self.spatial_norm(y))
        y = y * self.excite(F.silu(self.squeeze(y.mean((1, 2), keepdim=True)))).sigmoid()
        return F.silu(self.last_norm(self.last(y)) + self.shortcut(x))
