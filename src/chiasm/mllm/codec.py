"""Pictures to placeholders and patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
from torch import Tensor

from chiasm.core.batch import Slot
from chiasm.core.errors import NotGenerativeError
from chiasm.mllm.projectors import Projector
from chiasm.vision.config import EncoderConfig
from chiasm.vision.patches import fit, patchify, to_array


class MLLMCodec:
    """An ImageCodec whose slots are as many placeholders as the projector makes tokens."""

    vocabulary = None
    codes_per_image = 0

    def __init__(self, config: EncoderConfig, projector: Projector, image_token: int):
        self.config, self.projector, self.image_token = config, projector, image_token

    def encode(self, images: Sequence[PIL.Image.Image]) -> list[Slot]:
        """One Slot a picture, resized as the encoder was trained."""
        return [self._slot(image) for image in images]

    def decode(self, ids: Tensor) -> PIL.Image.Image:
        raise NotGenerativeError(
            "this model reads pictures but cannot draw them; use a unified model (chiasm draw)"
        )

    def _slot(self, image: PIL.Image.Image) -> Slot:
        c, patch = self.config, self.config.patch_size
        pixels = to_array(fit(image, c.image_size, patch, c.max_patches, c.resample))
        grid = (pixels.shape[0] // patch, pixels.shape[1] // patch)
        ids = np.full(self.projector.tokens(grid), self.image_token, np.int64)
        return Slot(ids, patchify(pixels, patch), grid)
