"""A linear layer followed by pre-norm residual MLPs (the form of 2002.04745's feed-forward), a
deeper projector whose direct path stays linear."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from chiasm.mllm.config import ResidualMLPConfig
from chiasm.mllm.projectors.base import Projector
from chiasm.mllm.projectors.parts import Layers, by_shape, merge, merged_shape, start_at


class ResidualMLPProjector(Projector):
    """Tokens as MLPProjector's: reading order of the merged grid, padded with zeros."""

    def __init__(self, config: ResidualMLPConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        # The path and its branches are independent at the start: their squares add up to scale's.
        share = scale / (config.blocks + 1) ** 0.5
        self.linear = nn.Linear(vision * config.merge**2, language)
        start_at(share, self.linear)
        sizes = [language, config.hidden or language, language]
        self.blocks = nn.ModuleList(Layers(sizes, share) for _ in range(config.blocks))

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return merged_shape(grid, self.config.merge)

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        if self.config.merge > 1:
            features = by_shape(partial(merge, size=self.config.merge), features, grids)
        x = self.linear(features)
        for block in self.blocks:
            x = x + block(F.layer_norm(x, x.shape[-1:]))
        return x
