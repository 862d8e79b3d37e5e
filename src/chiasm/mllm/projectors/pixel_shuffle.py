"""Idefics3's connector (2408.12637), also SmolVLM's (2504.05299)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from chiasm.mllm.config import PixelShuffleConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import by_shape, merge, merged_shape, start_at


class PixelShuffleProjector(Projector):
    """Space to depth, then a linear layer without bias, in the order of the published weights.
    Sides that factor does not divide are padded with zeros (Idefics3 has none such)."""

    def __init__(self, config: PixelShuffleConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        self.proj = nn.Linear(vision * config.factor**2, language, bias=False)
        start_at(scale, self.proj)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return merged_shape(grid, self.config.factor)

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.proj(by_shape(partial(merge, size=self.config.factor), features, grids))
