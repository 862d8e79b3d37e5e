"""One linear layer, as LLaVA (2304.08485, section 4.1) and PaliGemma (2407.07726, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from chiasm.mllm.config import LinearConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import start_at


class LinearProjector(Projector):
    """One token a patch."""

    def __init__(self, config: LinearConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(vision, language)
        start_at(0.0 if config.zero_init else scale, self.linear)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.linear(features)
