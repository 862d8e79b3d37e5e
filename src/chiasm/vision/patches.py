"""Images to patches [P, 3·p·p] and back, without torchvision."""

from __future__ import annotations

import math

import numpy as np
import PIL.Image


def to_array(image: PIL.Image.Image) -> np.ndarray:
    """[H W 3] float32 in [-1, 1] (SigLIP's normalisation: mean and deviation 0.5)."""
    return np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1.0


def from_array(pixels: np.ndarray) -> PIL.Image.Image:
    """The inverse of to_array, clipped and rounded."""
    levels = np.clip((pixels + 1.0) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(levels)


def patchify(pixels: np.ndarray, size: int) -> np.ndarray:
    """[H W 3] -> [H/p · W/p, 3·p·p], rows of patches first; inside a patch (channel, y, x), the
    order of a convolution's weight, so that a linear layer over it equals a patch convolution."""
    H, W, C = pixels.shape
    if H % size or W % size:
        raise ValueError(f"an image of {W}x{H} is not divisible into patches of {size}")
    tiles = pixels.reshape(H // size, size, W // size, size, C)
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3)).reshape(-1, C * size * size)


def unpatchify(patches: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The inverse: [rows · columns, 3·p·p] -> [H W 3]."""
    (rows, columns), size = grid, math.isqrt(patches.shape[1] // 3)
    tiles = patches.reshape(rows, columns, 3, size, size)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)


def fit(
    image: PIL.Image.Image, size: int, step: int, max_patches: int | None, resample: int = 3
) -> PIL.Image.Image:
    """Resize for an encoder; resample is PIL's number of the filter, 3 the bicubic one.

    max_patches None: squeeze to size × size (fixed resolution, SigLIP's way), less the rows and
    columns that a patch convolution leaves over (384 = 27 · 14 + 6). Otherwise keep the aspect: as
    large as max_patches squares of `step` allow, but not beyond `size` on the longer side
    (variable resolution, NaFlex's way).
    """
    target = (size, size) if max_patches is None else native(image.size, size, step, max_patches)
    image = resized(image, target, resample)
    whole = (target[0] // step * step, target[1] // step * step)
    return image if whole == target else image.crop((0, 0, *whole))


def native(image: tuple[int, int], longest: int, step: int, max_patches: int) -> tuple[int, int]:
    """Width and height, multiples of step, that an image (width, height) is resized to: the
    largest scale whose sides, rounded up, hold at most max_patches squares (SigLIP 2, 2502.14786,
    section 2.4.2). The search is that of the published processor, so that roundings agree."""
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        width, height = (_whole(edge * scale, step) for edge in image)
        low, high = (scale, high) if width * height <= max_patches else (low, scale)
    limit = max(1, longest // step)
    scale = min(low, limit * step / max(image))
    width, height = (min(limit, _whole(edge * scale, step)) * step for edge in image)
    return width, height


def fit_padded(
    image: PIL.Image.Image,
    colour: tuple[int, int, int],
    size: int,
    step: int,
    max_patches: int | None,
    resample: int = 3,
) -> PIL.Image.Image:
    """`fit` of the image in the middle of the smallest square of this colour (LLaVA's way).

    A square of more than WHOLE pixels is never made, as a sliver's takes gigabytes: each pass of
    the resampling then pads only as far as its filter reaches; pixels differ by two levels at most.
    """
    whole = max(image.size)
    if whole * whole <= WHOLE:
        square = PIL.Image.new("RGB", (whole, whole), colour)
        square.paste(image, ((whole - image.width) // 2, (whole - image.height) // 2))
        return fit(square, size, step, max_patches, resample)
    side = size if max_patches is None else native((whole, whole), size, step, max_patches)[0]
    square, kept = _padded(image, side, colour, resample), side // step * step
    return square if kept == side else square.crop((0, 0, kept, kept))


WHOLE = 2**24
"""Pixels up to which an image is padded, or resized before it is cropped, as a whole."""


def _padded(
    image: PIL.Image.Image, side: int, colour: tuple[int, int, int], resample: int
) -> PIL.Image.Image:
    whole = max(image.size)
    image, left = _padded_columns(image, whole, side, colour, resample)
    # The second pass is the first one on its side.
    turned = image.transpose(PIL.Image.Transpose.TRANSPOSE)
    turned, top = _padded_columns(turned, whole, side, colour, resample)
    square = PIL.Image.new("RGB", (side, side), colour)
    square.paste(turned.transpose(PIL.Image.Transpose.TRANSPOSE), (left, top))
    return square


BAND = 2**20
"""Pixels that are padded at a time."""


def _padded_columns(
    image: PIL.Image.Image, whole: int, side: int, colour: tuple[int, int, int], resample: int
) -> tuple[PIL.Image.Image, int]:
    """The image padded on the left and right to `whole` columns and resized to `side`, heights
    kept: of it the columns that are not all padding, and the number of the first."""
    scale = whole / side
    offset = (whole - image.width) // 2
    # Lanczos, the widest filter, reads 3 pixels of the smaller scale to each side.
    reach = 3 * max(scale, 1.0) + 1
    first = max(0, math.floor((offset - reach) / scale))
    end = min(side, math.ceil((offset + image.width + reach) / scale))
    left = max(0, math.floor(first * scale - reach))
    width = min(whole, math.ceil(end * scale + reach)) - left
    box = (first * scale - left, end * scale - left)
    rows = max(1, BAND // width)
    made = PIL.Image.new("RGB", (end - first, image.height))
    for y in range(0, image.height, rows):
        height = min(rows, image.height - y)
        band = PIL.Image.new("RGB", (width, height), colour)
        band.paste(image.crop((0, y, image.width, y + height)), (offset - left, 0))
        filter = PIL.Image.Resampling(resample)
        area = (box[0], 0, min(box[1], width), height)
        made.paste(band.resize((end - first, height), filter, area), (0, y))
    return made, first


def crop_to_square(image: PIL.Image.Image, size: int, resample: int) -> PIL.Image.Image:
    """The middle size × size of the image resized so that its shorter side is `size`, the longer
    one rounded down. Of more than WHOLE pixels only those that are kept are computed; they differ
    by two levels at most."""
    shorter = min(image.size)
    width, height = (int(size * edge / shorter) for edge in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    box = (left, top, left + size, top + size)
    if width * height <= WHOLE:
        return resized(image, (width, height), resample).crop(box)
    return _part_resized(image, (width, height), box, resample)


def _part_resized(
    image: PIL.Image.Image, size: tuple[int, int], box: tuple[int, ...], resample: int
) -> PIL.Image.Image:
    """The part (left, top, right, bottom) of the image resized to `size`."""
    x, y = image.width / size[0], image.height / size[1]
    left, top, right, bottom = box
    source = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((right - left, bottom - top), PIL.Image.Resampling(resample), source)


def resized(image: PIL.Image.Image, size: tuple[int, int], resample: int) -> PIL.Image.Image:
    """The image at (width, height)."""
    return image if image.size == size else image.resize(size, PIL.Image.Resampling(resample))


def _whole(edge: float, step: int) -> int:
    return max(1, math.ceil(edge / step))
