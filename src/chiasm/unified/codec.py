"""Pictures to ids of the shared vocabulary and back, through the image tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Slot
from chiasm.core.config import to_dict
from chiasm.core.sample import Image
from chiasm.core.vocab import Vocabulary
from chiasm.unified.autoencoder import Autoencoder
from chiasm.vision.patches import fit, from_array, to_array


class UnifiedCodec:
    """An ImageCodec whose slots are begin-of-image, codes in reading order, end-of-image.

    Every picture is squeezed to the tokenizer's image_size, so a picture always has the same
    number of codes, rows × columns = (image_size / stride)², times the quantizer's depth.
    stored: codes [h w] that are known already, by the digest of the picture's pixels (as
    data/tokens.py keeps them); pictures that are not among them are encoded.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        vocabulary: Vocabulary,
        stored: Mapping[str, np.ndarray] | None = None,
    ):
        if vocabulary.codes != autoencoder.quantizer.codes:
            raise ValueError(
                f"the vocabulary has {vocabulary.codes} image codes, "
                f"the image tokenizer {autoencoder.quantizer.codes}"
            )
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.vocabulary: Vocabulary = vocabulary
        self.stored = stored
        side = autoencoder.config.image_size // autoencoder.config.stride
        self.grid = (side, side * autoencoder.quantizer.depth)
        self.codes_per_image = self.grid[0] * self.grid[1]
        self.code_count = autoencoder.quantizer.codes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that codes depend on: shape, size of the pictures, encoder, codebook."""
        config = self.autoencoder.config
        shape = (config.quantizer, config.vit, config.multipliers, config.image_size)
        sha = hashlib.sha256(json.dumps(to_dict(shape)).encode())
        for part in (self.autoencoder.encoder, self.autoencoder.quantizer):
            for name, value in sorted(part.state_dict().items()):
                sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def encode(self, images: Sequence[PIL.Image.Image]) -> list[Slot]:
        """One Slot a picture: ids [n + 2], no patches."""
        if not self.stored:
            return [self._slot(codes) for codes in self.codes(images)]
        found = [self.stored.get(Image(image.convert("RGB")).digest()) for image in images]
        fresh = [image for image, codes in zip(images, found, strict=True) if codes is None]
        made = iter(self.codes(fresh) if fresh else ())
        return [self._slot(next(made) if codes is None else codes) for codes in found]

    def outline(self, size: tuple[int, int]) -> Slot:
        return self._slot(np.zeros(self.grid, np.int64))

    @torch.no_grad()
    def codes(self, images: Sequence[PIL.Image.Image]) -> list[np.ndarray]:
        """Codes [h w] int64 of each picture."""
        config = self.autoencoder.config
        arrays = [to_array(fit(i, config.image_size, config.stride, None)) for i in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return list(self.autoencoder.encode(pixels).numpy())

    def _slot(self, codes: np.ndarray) -> Slot:
        v = self.vocabulary
        inner = codes.reshape(-1).astype(np.int64) + v.first_code
        return Slot(np.concatenate([[v.begin_image], inner, [v.end_image]]), None, self.grid)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> PIL.Image.Image:
        """The picture of codes_per_image ids [n]. Raises ValueError for another number of ids or
        an id that is no image code."""
        if ids.numel() != self.codes_per_image:
            raise ValueError(f"a picture has {self.codes_per_image} codes, got {ids.numel()}")
        codes = self.vocabulary.id_to_code(ids).view(1, *self.grid)
        pixels = self.autoencoder.decode(codes)[0]
        return from_array(pixels.permute(1, 2, 0).numpy())
