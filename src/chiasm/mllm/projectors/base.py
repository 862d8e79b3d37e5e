"""What every projector is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Projector(nn.Module):
    """Made from (its config, width of the encoder, width of the language model, scale).

    `scale` is the root mean square of the language model's embeddings: visual tokens start about
    as large for features of unit size, where a design publishes no start of its own. A picture's
    tokens depend on that picture alone.
    """

    config: Any

    def tokens(self, grid: tuple[int, int]) -> int:
        """How many tokens a picture of this grid (rows, columns of patches) becomes."""
        raise NotImplementedError

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        """features [P, vision] of pictures with grids [N 2] -> tokens [sum of tokens, language]."""
        raise NotImplementedError
