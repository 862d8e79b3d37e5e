"""LLaVA-NeXT's AnyRes: the whole image, then its tiles as one larger grid of tokens.

whole    1 2      of 2 × 2 tokens a tile, beside one another, less the rows and columns
3 4      that only fill (here none), with the end of each row:   1 1 2 2 ⏎ 1 1 2 2 ⏎ 3 3 …
"""

from __future__ import annotations

import numpy as np
import PIL.Image

from chiasm.core.batch import Slot
from chiasm.core.errors import ConfigError
from chiasm.mllm.config import AnyResConfig
from chiasm.mllm.images.base import ImageMode
from chiasm.vision.patches import resized
from chiasm.vision.tiles import best_resolution, cut, fit_into, unpadded

SHAPES = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Rows and columns of tiles that LLaVA-NeXT offers."""


class AnyResMode(ImageMode):
    """A projector whose tokens stand for no places has no rows: its tiles follow one another
    whole. Raises ConfigError for a resolution that is not made of whole tiles."""

    def __init__(self, config: AnyResConfig, *parts, **more):
        super().__init__(config, *parts, **more)
        side = self.side
        given = config.image_grid_pinpoints
        self.choices = given or tuple((r * side, c * side) for r, c in SHAPES)
        for height, width in self.choices:
            if height < side or width < side or height % side or width % side:
                raise ConfigError(
                    f"model.image_processing.image_grid_pinpoints: {height} x {width} pixels, but "
                    f"the encoder sees tiles of {side}; choose multiples of that"
                )

    def tiles(self, image: PIL.Image.Image) -> list[PIL.Image.Image]:
        height, width = best_resolution(image.size, self.choices)
        filter = self.encoder.resample
        whole = resized(image, (self.side, self.side), filter)
        return [whole, *cut(fit_into(image, height, width, filter), self.side)]

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        height, width = best_resolution(size, self.choices)
        scale = min(width / size[0], height / size[1])
        return size[0] * scale, size[1] * scale

    def slot(self, size: tuple[int, int]) -> Slot:
        height, width = best_resolution(size, self.choices)
        rows, columns = height // self.side, width // self.side
        grid = self.grid(self.side, self.side)
        tokens, shape = self.tokens(grid), self.projector.shape(grid)
        count = tokens * (1 + rows * columns)
        if shape is None:
            return Slot(self.placeholders(count), None, grid, np.arange(count), 1 + rows * columns)
        h, w = shape
        tiles = np.arange(tokens, count).reshape(rows, columns, tokens)[:, :, tokens - h * w :]
        joined = tiles.reshape(rows, columns, h, w).swapaxes(1, 2).reshape(rows * h, columns * w)
        top, left = unpadded(size, *joined.shape)
        kept = joined[top : len(joined) - top, left : joined.shape[1] - left]
        length = kept.shape[1] + 1  # with the end of the row
        place = np.full(count, -1)
        place[:tokens] = np.arange(tokens)
        place[kept] = tokens + np.arange(len(kept))[:, None] * length + np.arange(length - 1)
        ids = self.placeholders(tokens + len(kept) * length)
        return Slot(ids, None, grid, place, 1 + rows * columns)
