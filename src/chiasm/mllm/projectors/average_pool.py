"""Average pooling before an MLP: fewer tokens without parameters (DeCo, 2405.20985)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from chiasm.mllm.config import AveragePoolConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Layers, by_shape, merged_shape


class AveragePoolProjector(Projector):
    """Tokens in reading order of the pooled grid. At sides that size does not divide, the mean is
    over the patches that are there."""

    def __init__(self, config: AveragePoolConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        hidden = [config.hidden or language] * (config.layers - 1)
        self.layers = Layers([vision, *hidden, language], scale)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return merged_shape(grid, self.config.size)

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.layers(by_shape(self._pool, features, grids))

    def _pool(self, x: Tensor) -> Tensor:
        """[n h w D] -> [n t D]"""
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.config.size, ceil_mode=True)
        return pooled.flatten(2).transpose(1, 2)
