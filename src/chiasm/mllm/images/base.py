"""What every way of showing an image to an encoder is."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

import numpy as np
import PIL.Image

from chiasm.core.batch import Slot
from chiasm.mllm.projectors import Projector
from chiasm.vision.config import EncoderConfig

Words = Callable[[str], list[int]]
"""The ids of words and special tokens, nothing added."""


class ImageMode:
    """An image's tiles and, from its size alone, where their tokens stand.

    words: only of a mode that puts words between the tiles.
    """

    def __init__(
        self,
        config: object,
        encoder: EncoderConfig,
        projector: Projector,
        image_token: int,
        words: Words | None = None,
    ):
        self.config, self.encoder, self.projector = config, encoder, projector
        self.image_token, self.words = image_token, words

    @property
    def side(self) -> int:
        """Pixels of a square that suits the encoder."""
        e = self.encoder
        if e.max_patches is None:
            return e.image_size
        return min(e.image_size, isqrt(e.max_patches) * e.patch_size)

    def tiles(self, image: PIL.Image.Image) -> list[PIL.Image.Image]:
        """What the encoder sees, in order."""
        raise NotImplementedError

    def slot(self, size: tuple[int, int]) -> Slot:
        """The slot, without patches, of an image (width, height)."""
        raise NotImplementedError

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        """Pixels that an image (width, height) itself is resized to, as in ImageCodec."""
        raise NotImplementedError

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Whole patches of a tile."""
        return height // self.encoder.patch_size, width // self.encoder.patch_size

    def tokens(self, grid: tuple[int, int]) -> int:
        """Visual tokens of one tile: a class token's first, where it is a feature."""
        special = self.projector.tokens((1, 1)) if self.encoder.class_token else 0
        return special + self.projector.tokens(grid)

    def placeholders(self, count: int) -> np.ndarray:
        return np.full(count, self.image_token, np.int64)
