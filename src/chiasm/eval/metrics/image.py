"""How near two images are, and how different the images of a set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of arrays of any equal shape; inf when they are equal.

    The peak is 255 for uint8 and 2 for floating point, which is taken to be in [-1, 1]. Raises
    ValueError when the shapes differ or one array is uint8 and the other is not.
    """
    if image.shape != reference.shape:
        raise ValueError(f"psnr of different shapes: {image.shape} and {reference.shape}")
    levels = [array.dtype == np.uint8 for array in (image, reference)]
    if levels[0] != levels[1]:
        raise ValueError(f"psnr of different scales: {image.dtype} and {reference.dtype}")
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    peak = 255.0 if levels[0] else 2.0
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of uint8 [H W 3] or [H W] arrays, at most 1, which equal ones have.

    Wang et al. 2004: windows of 11 pixels weighted by a Gaussian of 1.5, each channel by itself,
    the mean over channels and all windows that lie inside. Raises ValueError for shapes that
    differ, sides below 11 or other types.
    """
    if image.shape != reference.shape or min(image.shape[:2]) < 11:
        raise ValueError(f"ssim of {image.shape} and {reference.shape}; equal, 11 at least")
    if image.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"ssim wants uint8, got {image.dtype} and {reference.dtype}")
    x, y = image.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _window(x), _window(y)
    variances = _window(x * x) - mean_x**2 + _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * covariance + c2) / (variances + c2)).mean())


def _window(x: np.ndarray) -> np.ndarray:
    """[H W ...] -> [H-10 W-10 ...], the Gaussian mean of each window."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, 11, axis) @ weights
    return x


class Distinct(NamedTuple):
    """count: how many different images. distance: mean absolute difference of two of them,
    per channel value, over all pairs, as a fraction of the full range; 0 for a single image."""

    count: int
    distance: float


def distinct(images: Sequence[PIL.Image.Image | np.ndarray]) -> Distinct:
    """Diversity of the samples of one caption (images of one size, or uint8 [H W 3] arrays)."""
    if not images:
        raise ValueError("distinct of no images")
    arrays = [_levels(image) for image in images]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"distinct of different sizes: {sorted({a.shape for a in arrays})}")
    flat = np.stack(arrays).reshape(len(arrays), -1).astype(np.int16)
    pairs = [np.abs(flat[i + 1 :] - flat[i]).mean(1) for i in range(len(flat) - 1)]
    distance = float(np.concatenate(pairs).mean()) / 255 if pairs else 0.0
    return Distinct(len({array.tobytes() for array in arrays}), distance)


def _levels(image: PIL.Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, PIL.Image.Image):
        return np.asarray(image.convert("RGB"))
    if image.dtype != np.uint8:
        raise ValueError(f"images as arrays must be uint8, got {image.dtype}")
    return image
