"""What a scanner and a photocopier do to a page: skew, blur, noise, fading, JPEG."""

from __future__ import annotations

import io
from random import Random

import numpy as np
import PIL.Image
from PIL import ImageFilter


def scan(image: PIL.Image.Image, random: Random, skew: float = 1.5) -> PIL.Image.Image:
    """A degraded copy of the same size: scan_jpeg, decoded."""
    with PIL.Image.open(io.BytesIO(scan_jpeg(image, random, skew))) as page:
        return page.convert("RGB")


def scan_jpeg(image: PIL.Image.Image, random: Random, skew: float = 1.5) -> bytes:
    """A degraded copy of the same size, a function of the image and the randomness alone.

    Turned by up to `skew` degrees (0 where boxes must stay true), Gaussian blur of up to 0.8 pixels
    at 1,000 pixels of width, less contrast, Gaussian noise of up to 12 of 255 levels and JPEG of
    quality 35 to 75: worse than a good scanner, still readable.
    """
    paper = tuple(int(level) for level in np.median(np.asarray(image).reshape(-1, 3), axis=0))
    image = image.rotate(random.uniform(-skew, skew), PIL.Image.Resampling.BICUBIC, fillcolor=paper)
    radius = random.uniform(0.2, 0.8) * image.width / 1000
    image = image.filter(ImageFilter.GaussianBlur(radius))
    pixels = np.asarray(image, dtype=np.float32)
    contrast = random.uniform(0.7, 1.0)
    pixels = 255 * random.uniform(0.9, 1.0) - contrast * (255 - pixels)
    noise = np.random.default_rng(random.getrandbits(64))
    pixels = pixels + noise.normal(0, random.uniform(2, 12), pixels.shape[:2])[..., None]
    page = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=random.randint(35, 75))
    return file.getvalue()
