"""LLaVA-1.5's MLP projector (2310.03744, section 3.2), with optional merging of patches."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from chiasm.mllm.config import MLPConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Layers, by_shape, merge, merged_shape


class MLPProjector(Projector):
    """Tokens of an image come in reading order of its merged grid; sides that merge does not
    divide are padded with zeros."""

    def __init__(self, config: MLPConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        hidden = [config.hidden or language] * (config.layers - 1)
        self.layers = Layers([vision * config.merge**2, *hidden, language], scale)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return merged_shape(grid, self.config.merge)

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        if self.config.merge > 1:
            features = by_shape(partial(merge, size=self.config.merge), features, grids)
        return self.layers(features)
