"""No projector: an encoder whose features already live in the language model's space."""

from __future__ import annotations

from torch import Tensor

from chiasm.core.errors import ConfigError
from chiasm.mllm.config import IdentityConfig
from chiasm.mllm.projectors.base import Projector


class IdentityProjector(Projector):
    """One token a patch, not even rescaled. Raises ConfigError if the widths differ."""

    def __init__(self, config: IdentityConfig, vision: int, language: int, scale: float):
        super().__init__()
        self.config = config
        if vision != language:
            raise ConfigError(
                f"model.projector: the identity carries features of width {vision} into a language "
                f"model of width {language}; choose LinearConfig or another projector"
            )

    def shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return features
