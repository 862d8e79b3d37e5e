"""Images to placeholders and patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import PIL.Image
from torch import Tensor

from chiasm.core.batch import Encoded, Slot
from chiasm.core.errors import NotGenerativeError
from chiasm.mllm.config import AS_TRAINED, ImagesConfig
from chiasm.mllm.images import Words, build_mode, for_frames
from chiasm.mllm.projectors import Projector
from chiasm.vision.config import EncoderConfig
from chiasm.vision.patches import from_array, patchify, to_array, unpatchify


class MLLMCodec:
    """An ImageCodec whose slots are as many placeholders as the projector makes tokens, laid out
    as `images` says. words: of the tokenizer, for modes that put words between tiles."""

    vocabulary = None
    codes_per_image = 0
    grids: tuple[tuple[int, int], ...] = ()
    depth = 1

    def __init__(
        self,
        config: EncoderConfig,
        projector: Projector,
        image_token: int,
        images: ImagesConfig = AS_TRAINED,
        words: Words | None = None,
    ):
        self.config, self.images = config, images
        self._parts = (config, projector, image_token)
        self._words = words
        self.mode = build_mode(images, *self._parts, words)

    @cached_property
    def frames(self) -> MLLMCodec:
        """The codec for frames of a clip: they are never cut into tiles."""
        return MLLMCodec(*self._parts, for_frames(self.images), self._words)

    def encode(self, images: Sequence[PIL.Image.Image]) -> list[Slot]:
        """One Slot an image."""
        return [self._slot(image) for image in images]

    def outline(self, size: tuple[int, int]) -> Slot:
        return self.mode.slot(size)

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        return self.mode.input_size(size)

    def tokens(self, size: tuple[int, int]) -> int:
        """How many ids an image (width, height) takes in the sequence."""
        return len(self.mode.slot(size).input_ids)

    def shown(self, encoded: Encoded) -> list[PIL.Image.Image]:
        if encoded.image_patches is None or encoded.image_grids is None:
            return []
        ends = np.cumsum(encoded.image_grids.prod(1))[:-1]
        parts = zip(
            np.split(encoded.image_patches, ends), encoded.image_grids.tolist(), strict=True
        )
        return [from_array(unpatchify(patches, (h, w))) for patches, (h, w) in parts]

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> PIL.Image.Image:
        return self.decode_all([ids], [grid])[0]

    def decode_all(
        self, ids: Sequence[Tensor], grids: Sequence[tuple[int, int] | None]
    ) -> list[PIL.Image.Image]:
        raise NotGenerativeError(
            "this model reads images but cannot draw them; use a unified model (chiasm generate)"
        )

    def _slot(self, image: PIL.Image.Image) -> Slot:
        slot = self.mode.slot(image.size)
        rows, columns = (side * self.config.patch_size for side in slot.grid)
        # A patch convolution leaves over what is no whole patch (384 = 27 · 14 + 6).
        tiles = [to_array(tile)[:rows, :columns] for tile in self.mode.tiles(image)]
        patches = [patchify(tile, self.config.patch_size) for tile in tiles]
        return replace(slot, image_patches=np.concatenate(patches))
