"""Pictures to patches [P, 3·p·p] and back, without torchvision."""

from __future__ import annotations

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


def fit(
    image: PIL.Image.Image, size: int, step: int, max_patches: int | None, resample: int = 3
) -> PIL.Image.Image:
    """Resize for an encoder; resample is PIL's number of the filter, 3 the bicubic one.

    max_patches None: squeeze to size × size (fixed resolution, SigLIP's way), less the rows and
    columns that a patch convolution leaves over (384 = 27 · 14 + 6). Otherwise keep the aspect: the
    largest multiple of `step` a side that stays within max_patches and does not enlarge beyond
    `size` on the longer side (variable resolution, as NaFlex).
    """
    if max_patches is None:
        target = (size, size)
    else:
        W, H = image.size
        scale = min(size / max(W, H), step * (max_patches / (W * H)) ** 0.5)
        width, height = (max(step, int(edge * scale / step + 1e-6) * step) for edge in (W, H))
        # A very long picture is at least one patch wide, which may break the budget: shorten it.
        limit = max_patches * step * step
        width = min(width, max(step, limit // height // step * step))
        height = min(height, max(step, limit // width // step * step))
        target = (width, height)
    if image.size != target:
        image = image.resize(target, PIL.Image.Resampling(resample))
    whole = (target[0] // step * step, target[1] // step * step)
    return image if whole == target else image.crop((0, 0, *whole))
