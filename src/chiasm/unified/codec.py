"""Pictures to ids of the shared vocabulary and back, through the image tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Slot
from chiasm.core.vocab import Vocabulary
from chiasm.unified.autoencoder import Autoencoder
from chiasm.vision.patches import fit, from_array, to_array


class UnifiedCodec:
    """An ImageCodec whose slots are begin-of-image, codes in reading order, end-of-image.

    Every picture is squeezed to the tokenizer's image_size, so a picture always has the same
    number of codes, rows × columns = (image_size / stride)².
    """

    def __init__(self, autoencoder: Autoencoder, vocabulary: Vocabulary):
        if vocabulary.codes != autoencoder.quantizer.codes:
            raise ValueError(
                f"the vocabulary has {vocabulary.codes} image codes, "
                f"the image tokenizer {autoencoder.quantizer.codes}"
            )
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.vocabulary: Vocabulary = vocabulary
        side = autoencoder.config.image_size // autoencoder.config.stride
        self.grid = (side, side)
        self.codes_per_image = side * side

    @torch.no_grad()
    def encode(self, images: Sequence[PIL.Image.Image]) -> list[Slot]:
        """One Slot a picture: ids [n + 2], no patches."""
        config = self.autoencoder.config
        arrays = [to_array(fit(i, config.image_size, config.stride, None)) for i in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        codes = self.vocabulary.code_to_id(self.autoencoder.encode(pixels)).flatten(1).numpy()
        first, last = [self.vocabulary.begin_image], [self.vocabulary.end_image]
        return [Slot(np.concatenate([first, row, last]), None, self.grid) for row in codes]

    @torch.no_grad()
    def decode(self, ids: Tensor) -> PIL.Image.Image:
        """The picture of codes_per_image ids [n]. Raises ValueError for another number of ids or
        an id that is no image code."""
        if ids.numel() != self.codes_per_image:
            raise ValueError(f"a picture has {self.codes_per_image} codes, got {ids.numel()}")
        codes = self.vocabulary.id_to_code(ids).view(1, *self.grid)
        pixels = self.autoencoder.decode(codes)[0]
        return from_array(pixels.permute(1, 2, 0).numpy())
