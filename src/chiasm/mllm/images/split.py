"""Idefics3's tiles, also SmolVLM's: each introduced by a word for its row and column, the whole
image last."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import PIL.Image

from chiasm.core.batch import Slot
from chiasm.mllm.config import SplitConfig
from chiasm.mllm.images.base import ImageMode
from chiasm.vision.patches import resized
from chiasm.vision.tiles import cut, stretched

AROUND, WHOLE, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


class SplitMode(ImageMode):
    def __init__(self, config: SplitConfig, *parts, **more):
        super().__init__(config, *parts, **more)
        assert self.words is not None
        self.splits = config.do_image_splitting
        self.tile = config.max_image_size or self.side
        self.longest = config.longest_edge or 4 * self.tile
        self.lay = lru_cache(maxsize=256)(self._lay)

    def tiles(self, image: PIL.Image.Image) -> list[PIL.Image.Image]:
        filter, square = self.encoder.resample, (self.tile, self.tile)
        for size in stretched(image.size, self.longest, self.tile)[: 2 if self.splits else 1]:
            image = resized(image, size, filter)
        whole = resized(image, square, filter)
        parted = self.splits and image.size != square
        return [*cut(image, self.tile), whole] if parted else [whole]

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        if not self.splits:
            return self.tile, self.tile
        return stretched(size, self.longest, self.tile)[1]

    def slot(self, size: tuple[int, int]) -> Slot:
        width, height = stretched(size, self.longest, self.tile)[1]
        rows, columns = height // self.tile, width // self.tile
        return self.lay(rows, columns) if self.splits else self.lay(1, 1)

    def _lay(self, rows: int, columns: int) -> Slot:
        parted = (rows, columns) != (1, 1)
        grid = self.grid(self.tile, self.tile)
        text = f"{AROUND}{WHOLE}{IMAGE}{AROUND}"
        if parted:
            lines = (
                "".join(f"{AROUND}{word(row, column)}{IMAGE}" for column in range(columns))
                for row in range(rows)
            )
            text = "".join(f"{line}\n" for line in lines) + f"\n{text}"
        assert self.words is not None
        ids = np.array(self.words(text), np.int64)
        repeats = np.where(ids == self.image_token, self.tokens(grid), 1)
        ids = ids.repeat(repeats)
        place = np.flatnonzero(ids == self.image_token)
        return Slot(ids, None, grid, place, 1 + rows * columns if parted else 1)


def word(row: int, column: int) -> str:
    """What introduces a tile, counted from 0."""
    return f"<row_{row + 1}_col_{column + 1}>"


def words_needed(config: SplitConfig, side: int) -> list[str]:
    """The special tokens of this mode, for tiles of `side` where it does not name their size."""
    tile = config.max_image_size or side
    most = -(-(config.longest_edge or 4 * tile) // tile) if config.do_image_splitting else 0
    return [AROUND, WHOLE, *(word(r, c) for r in range(most) for c in range(most))]
