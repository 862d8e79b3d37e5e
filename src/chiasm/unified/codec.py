"""Images to ids of the shared vocabulary and back, through the image tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from chiasm.core.batch import Encoded, Slot
from chiasm.core.config import identity
from chiasm.core.device import model_device
from chiasm.core.sample import Image
from chiasm.core.vocab import Vocabulary
from chiasm.unified.autoencoder import Autoencoder
from chiasm.vision.patches import fit, from_array, resized, to_array


class UnifiedCodec:
    """An ImageCodec whose slots are begin-of-image, codes in reading order, end-of-image.

    Every image is squeezed to the tokenizer's image_size, so an image always has the same
    number of codes, rows × columns = (image_size / stride)², times the quantizer's depth.
    grids: other (rows, columns) of places instead; an image is squeezed to the one nearest to its
    shape, then size, and its slot says the rows and columns of codes before them. With a row_end
    in the vocabulary it stands behind each row of codes.
    stored: codes [h w] that are known already, by the digest of the image's pixels (as
    data/tokens.py keeps them); images that are not among them are encoded.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        vocabulary: Vocabulary,
        stored: Mapping[str, np.ndarray] | None = None,
        grids: Sequence[tuple[int, int]] = (),
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
        self.depth: int = autoencoder.quantizer.depth
        self.places = tuple(grids) or ((side, side),)
        self.grids = tuple((h, w * self.depth) for h, w in self.places)
        self.grid = self.grids[0]
        self.codes_per_image = max(h * w for h, w in self.grids)
        self.code_count = autoencoder.quantizer.codes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that codes depend on: shape, size of the images, encoder, codebook."""
        config = self.autoencoder.config
        shape: tuple = (config.quantizer, config.vit, config.multipliers, config.image_size)
        if self.vocabulary.sides:
            shape = (*shape, self.places)
        sha = hashlib.sha256(json.dumps(identity(shape)).encode())
        for part in (self.autoencoder.encoder, self.autoencoder.quantizer):
            for name, value in sorted(part.state_dict().items()):
                sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def encode(self, images: Sequence[PIL.Image.Image]) -> list[Slot]:
        """One Slot an image: ids [n + 2], no patches."""
        if not self.stored:
            return [self._slot(codes) for codes in self.codes(images)]
        found = [self.stored.get(Image(image.convert("RGB")).digest()) for image in images]
        fresh = [image for image, codes in zip(images, found, strict=True) if codes is None]
        made = iter(self.codes(fresh) if fresh else ())
        return [self._slot(next(made) if codes is None else codes) for codes in found]

    def outline(self, size: tuple[int, int]) -> Slot:
        width, height = self._size(size)
        stride = self.autoencoder.config.stride
        return self._slot(np.zeros((height // stride, width // stride), np.int64))

    def input_size(self, size: tuple[int, int]) -> tuple[float, float]:
        return self._size(size)

    @torch.no_grad()
    def codes(self, images: Sequence[PIL.Image.Image]) -> list[np.ndarray]:
        """Codes [h w] int64 of each image."""
        sizes = [self._size(image.size) for image in images]
        result: list[np.ndarray] = [np.empty(0)] * len(images)
        for size in dict.fromkeys(sizes):
            rows = [row for row, own in enumerate(sizes) if own == size]
            arrays = [to_array(self._fitted(images[row], size)) for row in rows]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
            codes_of = self.autoencoder.encode(pixels.to(model_device(self.autoencoder))).cpu()
            for row, codes in zip(rows, codes_of.numpy(), strict=True):
                result[row] = codes
        return result

    def _size(self, own: tuple[int, int]) -> tuple[int, int]:
        """Width and height in pixels that an image of such a size is squeezed to."""

        def apart(places: tuple[int, int]) -> tuple[float, float]:
            wide, high = places[1] * stride / own[0], places[0] * stride / own[1]
            return abs(math.log(wide / high)), abs(math.log(wide * high))

        stride = self.autoencoder.config.stride
        rows, columns = min(self.places, key=apart)
        return columns * stride, rows * stride

    def _fitted(self, image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
        config = self.autoencoder.config
        if self.vocabulary.sides:
            return resized(image, size, 3)
        return fit(image, config.image_size, config.stride, None)

    def _slot(self, codes: np.ndarray) -> Slot:
        v, (rows, columns) = self.vocabulary, codes.shape
        inner = codes.astype(np.int64) + v.first_code
        if v.row_end is not None:
            inner = np.pad(inner, ((0, 0), (0, 1)), constant_values=v.row_end)
        size = [v.side_to_id(rows), v.side_to_id(columns)] if v.sides else []
        ids = [[v.begin_image], size, inner.reshape(-1), [v.end_image]]
        return Slot(np.concatenate(ids).astype(np.int64), None, (rows, columns))

    def shown(self, encoded: Encoded) -> list[PIL.Image.Image]:
        if encoded.image_grids is None:
            return []
        ids = torch.from_numpy(encoded.input_ids)
        codes = ids[self.vocabulary.is_code(ids)]
        images = codes.split(encoded.image_grids.prod(1).tolist())
        return self.decode_all(images, [(h, w) for h, w in encoded.image_grids.tolist()])

    def decode(self, ids: Tensor, grid: tuple[int, int] | None = None) -> PIL.Image.Image:
        return self.decode_all([ids], [grid])[0]

    @torch.no_grad()
    def decode_all(
        self, ids: Sequence[Tensor], grids: Sequence[tuple[int, int] | None]
    ) -> list[PIL.Image.Image]:
        """The images of code ids [n] each in their grids, None for that of all images. Raises
        ValueError for another number of ids or an id that is no image code."""
        shapes = [grid or self.grid for grid in grids]
        for own, (rows, columns) in zip(ids, shapes, strict=True):
            if own.numel() != rows * columns:
                raise ValueError(f"an image has {rows * columns} codes, got {own.numel()}")
        result: list[PIL.Image.Image] = [PIL.Image.new("RGB", (1, 1))] * len(ids)
        for shape in dict.fromkeys(shapes):
            places = [place for place, own in enumerate(shapes) if own == shape]
            # torch convolves an odd one by another kernel: no drawing may depend on its company.
            even = [*places, *places[-1:] * (len(places) % 2)]
            codes = self.vocabulary.id_to_code(
                torch.stack([ids[place].flatten() for place in even])
            )
            codes = codes.view(-1, *shape).to(model_device(self.autoencoder))
            pixels = self.autoencoder.decode(codes).permute(0, 2, 3, 1).float().cpu()
            for place, own in zip(places, pixels.numpy(), strict=False):
                result[place] = from_array(own)
        return result
