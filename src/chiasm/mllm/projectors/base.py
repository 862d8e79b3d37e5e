"""What every projector is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Projector(nn.Module):
    """Made from (its config, width of the encoder, width of the language model, scale).

    `scale` is the root mean square of the language model's embeddings: visual tokens start about
    as large for features of unit size, where a design publishes no start of its own. An image's
    tokens depend on that image alone. image_newline [language]: stands at the end of each row of
    tokens of an image cut into tiles, in models that mark it (AnyResConfig).
    config: what it is built from when a saved run is loaded; without, a run cannot be saved.
    """

    config: Any = None
    image_newline: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("image_newline", None)

    def shape(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Rows and columns of the tokens of an image of this grid; None where they stand for no
        places, as those of queries do."""
        return None

    def tokens(self, grid: tuple[int, int]) -> int:
        """How many tokens an image of this grid (rows, columns of patches) becomes."""
        shape = self.shape(grid)
        if shape is None:
            raise NotImplementedError
        return shape[0] * shape[1]

    def forward(self, features: Tensor, grids: Tensor) -> Tensor:
        """features [P, vision] of images with grids [N 2] -> tokens [sum of tokens, language].
        Grids are in main memory; read them by grids.tolist(), which a plan can do too, as its
        tensors have shapes alone."""
        raise NotImplementedError
