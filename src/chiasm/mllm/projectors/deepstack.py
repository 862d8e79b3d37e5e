"""DeepStack (2406.04334) as in Qwen3-VL (2511.21631): the encoder's earlier layers enter the
language model's first ones."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from chiasm.core.errors import ConfigError
from chiasm.mllm.config import DeepStackConfig
from chiasm.mllm.projectors.inner import InnerProjector, Sight, Step


class DeepStackProjector(InnerProjector):
    """features [P levels·D]: the encoder's chosen layers side by side. Those of the last one become
    tokens; level i is added to the hidden states at the placeholders before layer i + 1. Raises
    ConfigError if the levels cannot share the encoder's width."""

    def __init__(self, config: DeepStackConfig, vision: int, language: int, scale: float):
        from chiasm.mllm.projectors import build_projector  # it knows this class

        super().__init__()
        self.config, self.reach = config, config.levels
        if vision % config.levels:
            raise ConfigError(
                f"model.projector.levels: {config.levels} layers cannot have {vision} features "
                "together; set model.vision.layer to as many layers"
            )
        self.levels = nn.ModuleList(
            build_projector(config.each, vision // config.levels, language, scale)
            for _ in range(config.levels)
        )

    def tokens(self, grid: tuple[int, int]) -> int:
        return self.levels[-1].tokens(grid)  # type: ignore[operator]

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        return self.levels[-1](self._parts(features)[-1], grids)

    def inner(self, features: Tensor, grids: Tensor) -> list[Tensor]:
        parts = self._parts(features)[:-1]
        return [level(x, grids) for level, x in zip(self.levels[:-1], parts, strict=True)]

    def between(
        self, features: Tensor | None, grids: Tensor | None, sight: Sight
    ) -> dict[int, Step]:
        if features is None or grids is None:
            return {}
        stacked = enumerate(self.inner(features, grids), 1)
        return {
            number: partial(_add, sight.at, sight.arrange(tokens)) for number, tokens in stacked
        }

    def _parts(self, features: Tensor) -> tuple[Tensor, ...]:
        return features.chunk(self.config.levels, dim=-1)


def _add(at: Tensor, tokens: Tensor, x: Tensor) -> Tensor:
    """x [B T D] with tokens [n D] added at these of its rows laid flat [n]."""
    return x.flatten(0, 1).index_add(0, at, tokens.to(x.dtype)).view_as(x)
